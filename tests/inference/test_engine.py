"""Sampled text on layouts, alone and in a running batch with so few blocks that some give way: always the same."""

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
import torch
from nccl_replay import replay
from support.asking import build_to_ask
from support.layouts import Layout
from support.mutations import Message
from support.objectives import Explore

from megatron_lite.config import resolve
from megatron_lite.errors import UsageError
from megatron_lite.inference.engine import Engine, share_of
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.paged_cache import cache_bytes
from megatron_lite.inference.random_numbers import exponentials
from megatron_lite.inference.requests import Addition, Completion, Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model
from megatron_lite.model.splitmix import key_of
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.training.boundaries import microbatches_of

LONGEST = 24
ROOMY, FEW = Sizes(blocks=200, block=4), Sizes(blocks=13, block=3, rows=5, budget=9)
LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=4),
    Layout(tensor=2, pipeline=2, tied=True),
    Layout(data=2),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2),
    Layout(pipeline=2, schedule="interleaved_1f1b", virtual_stages=2),
    Layout(tensor=2, pipeline=2, data=2),
    Layout(context=2),
]
Texts = dict[int, list[Completion]]


def decode(tokens) -> str:
    """A letter a token, so that stop strings are found soon."""
    return "".join("abc"[token % 3] for token in tokens)


def requests() -> list[Request]:
    """Some begin alike; each has options of its own. Their prompts take 1 to 15 of 24 positions."""
    beginning = (7, 3, 44, 9, 21, 6, 0)
    ways = [
        (Sampling(1.0), {"n": 3, "log_probabilities": 0}, Limits(9)),
        (Sampling(0.0), {"log_probabilities": 2}, Limits(20)),
        (Sampling(1.5, top_k=12, min_p=0.02), {"seed": 5}, Limits(7, vocab_size=50)),
        (Sampling(1.0, top_p=0.7, repetition_penalty=1.3), {"log_probabilities": 4}, Limits(12, eod=4)),
        (Sampling(2.0, logit_bias={5: 3.0}), {"n": 2}, Limits(14, stop_tokens=frozenset({5, 6}))),
        (Sampling(1.0, presence_penalty=0.5, frequency_penalty=0.5), {}, Limits(11, stop_strings=("ba", "ccc"))),
        (Sampling(1.0), {"log_probabilities": 1}, Limits(1000)),
    ]
    prompts = [beginning, (60,), (*beginning, 1), (*beginning, 1, 2), (5,) * 15, beginning[:4], (*beginning, 8, 9)]
    return [
        Request(10 * number, prompt, limits, sampling, **others)
        for number, (prompt, (sampling, others, limits)) in enumerate(zip(prompts, ways, strict=True))
    ]


@dataclass
class Found:
    """Of one rank."""

    texts: Texts
    events: list[Event]
    bytes: tuple[int, int]  # of its cache, and by the closed form
    totals: tuple[int, int]  # tokens that were reused, and how often one gave way


def run(layout: Layout, sizes: Sizes) -> Found:
    recorder = Recorder()
    model = build_to_ask(layout, recorder, LONGEST)
    recorder.phase = "generate"
    with held(model.stage):
        engine = Engine(model, sizes, decode)
        mine = share_of(requests(), model.mesh)
        texts = {request.number: found for request, found in zip(mine, engine.run(mine), strict=True)}
    kept = list(engine.cache.memories.values())
    layers = layout.layers // layout.pipeline
    form = cache_bytes(model.config.model, layout.tensor, layers, sizes, kept[0].itemsize)
    totals = engine.scheduler.totals
    assert not engine.busy and not engine.completions and engine.scheduler.blocks.available == sizes.blocks
    return Found(texts, recorder.events, (sum(m.nbytes for m in kept), form), (totals.reused, totals.gave_way))


def ids(texts: Texts) -> dict[int, list[list[int]]]:
    return {number: [one.ids for one in samples] for number, samples in texts.items()}


def numbers(completion: Completion) -> torch.Tensor:
    """All its log-probabilities."""
    given = [
        [t.log_probability, *(p for _, p in t.most_likely)] for t in completion.tokens if t.log_probability is not None
    ]
    return torch.tensor(given, dtype=torch.float64)


def same(ours: Texts, truth: Texts) -> bool:
    """Everything to the bit, but log-probabilities to rounding."""
    assert ids(ours) == {number: ids(truth)[number] for number in ours}
    for number, samples in ours.items():
        for one, other in zip(samples, truth[number], strict=True):
            assert (one.text, one.finish, one.stopped_by) == (other.text, other.finish, other.stopped_by)
            torch.testing.assert_close(numbers(one), numbers(other), rtol=0, atol=1e-12)
            likely = [[token for token, _ in t.most_likely] for t in one.tokens]
            assert likely == [[token for token, _ in t.most_likely] for t in other.tokens]
    return True


@pytest.fixture(scope="module")
def models() -> dict[bool, LanguageModel]:
    return {tied: build_to_ask(Layout(tied=tied), length=LONGEST) for tied in (False, True)}


@pytest.fixture(scope="module")
def alone(models) -> dict[bool, Texts]:
    """Each request in an engine of its own, on one process; by whether the embedding is tied."""
    found: dict[bool, Texts] = defaultdict(dict)
    for tied, model in models.items():
        with held(model.stage):
            for request in requests():
                found[tied][request.number] = Engine(model, ROOMY, decode).run([request])[0]
    return found


def test_alone_they_end_in_every_way(alone):
    ends = {(one.finish, type(one.stopped_by)) for samples in alone[False].values() for one in samples}
    assert ends == {("length", type(None)), ("stop", int), ("stop", str)}
    samples = alone[False][0]
    assert len({tuple(one.ids) for one in samples}) == len(samples) == 3
    assert len(alone[False][60][0].tokens) == LONGEST - 9
    for request in requests():
        for one in alone[False][request.number]:
            wanted = request.log_probabilities
            assert all((token.log_probability is None) == (wanted is None) for token in one.tokens)
            assert all(len(token.most_likely) == (wanted or 0) for token in one.tokens)
            visible = one.text if one.stopped_by is None else one.text + decode(one.ids)[len(one.text) :]
            assert visible == decode(one.ids)
            assert not isinstance(one.stopped_by, str) or decode(one.ids).startswith(one.text + one.stopped_by)
            assert one.answer == (one.ids[:-1] if isinstance(one.stopped_by, int) else one.ids)


@pytest.mark.parametrize("sizes", [ROOMY, FEW], ids=["roomy", "few"])
def test_in_a_running_batch_each_writes_what_it_writes_alone(alone, sizes):
    found = run(Layout(), sizes)
    assert same(found.texts, alone[False])
    reused, gave_way = found.totals
    assert reused > 0 and (gave_way > 0) == (sizes is FEW)


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def case(request, ranks) -> tuple[Layout, list[Found]]:
    """(layout, what its ranks found)."""
    return request.param, ranks.run(run, request.param.world, request.param, FEW)


def test_on_a_layout_everyone_writes_the_same(case, alone):
    layout, found = case
    everyones: Texts = {}
    for rank in found:
        assert same(rank.texts, alone[layout.tied])
        everyones |= rank.texts
    assert everyones.keys() == alone[layout.tied].keys()
    replicas = layout.data * layout.context
    assert sum(len(rank.texts) for rank in found) == len(everyones) * layout.world // replicas
    assert replicas > 1 or all(rank.totals[1] > 0 for rank in found)
    assert all(rank.bytes[0] == rank.bytes[1] for rank in found)
    gathers = [[e for e in rank.events if e.kind == "issue" and e.site == "zero.gather"] for rank in found]
    assert all(bool(one) == (replicas > 1) and len(one) <= layout.layers + 2 for one in gathers)


def test_the_transcript_completes_under_nccl_rules(case):
    _, found = case
    replay([rank.events for rank in found])


def test_unlike_a_training_step_generation_could_make_its_connections_as_it_goes(case):
    """It posts no receive ahead: whoever waits for a first message is waited for by its sender alone."""
    _, found = case
    later = [[event for event in rank.events if event.phase != "connect"] for rank in found]
    assert all(later) and all(len(some) < len(rank.events) for some, rank in zip(later, found, strict=True))
    replay(later)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.05)])
def test_log_probabilities_are_those_of_the_training_forward(dtype, bound):
    layout = Layout(dtype=dtype)
    asked = [request for request in requests() if request.log_probabilities is not None]
    generating, training = build_to_ask(layout, length=LONGEST), build_training(layout)
    with held(generating.stage):
        answers = Engine(generating, FEW, decode).run(asked)
    pairs = [(request, one) for request, samples in zip(asked, answers, strict=True) for one in samples]
    whole = torch.zeros(len(pairs), LONGEST + 1, dtype=torch.int64)
    for row, (request, one) in zip(whole, pairs, strict=True):
        text = [*request.prompt, *one.ids]
        row[: len(text)] = torch.tensor(text)
    outputs = training.outputs(microbatches_of(whole, training.config, 3), Explore(temperature=1.0))
    truth = torch.cat([output.log_probability for output in outputs]).double()
    worst = 0.0
    for row, (request, one) in zip(truth, pairs, strict=True):
        begin = len(request.prompt) - 1
        ours = torch.tensor([token.log_probability for token in one.tokens], dtype=torch.float64)
        worst = max(worst, (ours - row[begin : begin + len(ours)]).abs().max().item())
    print(f"{dtype}: log-probabilities of decoding and of the training forward differ by {worst:.1e} at most")
    assert worst <= bound


def build_training(layout: Layout) -> Model:
    config = layout.config(sequence_length=LONGEST)
    resolved = resolve(config, 1)
    return Model(config, resolved, build_mesh(MeshShape(), torch.device("cpu")))


def test_random_numbers_are_those_of_seed_request_sample_and_position(models):
    model = models[False]
    request = Request(7, (1, 2, 3), Limits(5), Sampling(1e9), seed=4, n=2)  # so hot that they alone decide
    with held(model.stage):
        (samples,) = Engine(model, ROOMY).run([request])
    for sample, one in enumerate(samples):
        keys = [key_of(4, 7, sample, position) for position in range(3, 8)]
        assert one.ids == exponentials(keys, 61, torch.device("cpu")).argmin(-1).tolist()


def test_who_joins_when_makes_no_difference(models, alone):
    model = models[False]
    with held(model.stage):
        engine, waiting = Engine(model, FEW, decode), requests()  # the last comes first
        while waiting or engine.busy:
            if waiting:
                engine.add(waiting.pop())
            engine.step()
    found = {r.number: [engine.completions[r.number, sample] for sample in range(r.n)] for r in requests()}
    assert same(found, alone[False])


def test_results_stream_as_they_come(models, alone):
    model, pieces = models[False], defaultdict(list)

    def listen(piece: Addition) -> None:
        pieces[piece.request, piece.sample].append(piece)

    with held(model.stage):
        Engine(model, FEW, decode).run(requests(), listen)
    for request in requests():
        for sample, one in enumerate(alone[False][request.number]):
            own = pieces[request.number, sample]
            assert [piece.token.id for piece in own] == one.ids
            assert "".join(piece.text for piece in own) == one.text
            assert [piece.finish for piece in own] == [None] * (len(own) - 1) + [one.finish]


def test_what_is_cancelled_leaves_and_the_others_go_on(models, alone):
    model, last = models[False], []
    with held(model.stage):
        engine = Engine(model, FEW, decode)
        for request in requests():
            engine.add(request, last.append)
        for _ in range(4):
            engine.step()
        engine.cancel(0)
        assert [(piece.request, piece.token, piece.finish) for piece in last[-3:]] == [(0, None, "cancelled")] * 3
        while engine.busy:
            engine.step()
        engine.step()  # and nothing happens
    found = {r.number: [engine.completions[r.number, sample] for sample in range(r.n)] for r in requests()}
    for one, whole in zip(found.pop(0), alone[False][0], strict=True):
        assert one.finish == "cancelled" and one.ids == whole.ids[: len(one.ids)]
    assert same(found, alone[False])


def spoiled(layout: Layout, faults: list[Message | None]) -> list[Texts]:
    """With each fault. Nothing here ends early or begins alike, so that all ranks go on in step."""
    model, found = build_to_ask(layout, Recorder(), LONGEST), []
    asked = [Request(n, (n, 7, 2 * n), Limits(4), Sampling(1.0), log_probabilities=2) for n in range(5)]
    with held(model.stage):
        for fault in faults:
            engine = Engine(model, ROOMY)
            if fault is None:
                texts = engine.run(asked)
            else:
                with fault.planted():
                    texts = engine.run(asked)
            found.append(dict(enumerate(texts)))
    return found


def test_a_fault_in_a_message_is_seen_in_what_is_written(ranks):
    layout = Layout(tensor=2, pipeline=2)
    messages = [Message(f"decode.{what}", way) for what in ("activation", "result") for way in ("send", "recv")]
    faults = [None, *messages, Message("decode.logits", "all_gather")]
    found = ranks.run(spoiled, layout.world, layout, faults)
    for number, fault in enumerate(faults[1:], start=1):
        assert any(differs(rank[0], rank[number]) for rank in found), f"{fault} changes nothing"


def differs(texts: Texts, others: Texts) -> bool:
    if ids(texts) != ids(others):
        return True
    pairs = ((numbers(texts[n][0]), numbers(others[n][0])) for n in texts)
    return any((a - b).abs().max() > 1e-6 for a, b in pairs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": (1,) * LONGEST}, "the prompt has 24 tokens: must have 1 to 23"),
        ({"prompt": ()}, "the prompt has 0 tokens"),
        ({"prompt": (1, 61)}, "token id 61: model.vocab_size = 61"),
        ({"sampling": Sampling(logit_bias={61: 1.0})}, "logit_bias has token id 61"),
        ({"number": 0}, "request 0 is there already"),
        ({"limits": Limits(40)}, "a sequence of 24 tokens takes 8 blocks of 3: the cache has 7"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_added(models, change, said):
    engine = Engine(models[False], Sizes(blocks=7, block=3))
    first = Request(0, (1,), Limits(3), n=2)
    engine.add(first)
    with pytest.raises(UsageError, match=said):
        engine.add(replace(first, **{"number": 1} | change))
    assert len(engine._samples) == len(engine.scheduler._sequences) == 2


@pytest.mark.parametrize(
    ("change", "said"), [({"n": 0}, "n = 0: must be 1 or more"), ({"log_probabilities": -1}, "log_probabilities = -1")]
)
def test_options_out_of_range_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        Request(0, (1,), Limits(1), **change)
