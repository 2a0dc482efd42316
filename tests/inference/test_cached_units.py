"""A trainer's own weights behind a cache, on layouts: against its training units and a plain model, which have none.

Each call site of inference/ is run here, and spoiled; tests/parallel/test_mutations.py, nightly, spoils all that
generation sends.
"""

import ast
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nccl_replay import replay
from support.layouts import Blocks, Layout, assemble, build_trainer, global_batch, my_batches, owned_blocks
from support.mutations import Message
from support.objectives import Explore
from support.reference import logits as plain_logits

from megatron_lite import inference
from megatron_lite.errors import UsageError
from megatron_lite.inference.generation import generate
from megatron_lite.inference.model import LanguageModel, language_model_of
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.model.outputs import stacked
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.parallel.tensor import ReplicatedRegion, SequenceRegion
from megatron_lite.training.step import Trainer

TOLERANCE = 1e-10
LENGTH, FIRST = 16, 9  # positions of a sequence, and of the first of its two chunks
BLOCK = 6  # positions of a block of the cache
BOTH = Layout(tensor=2, pipeline=2, tied=True, loss_chunk=5, recompute="full")
LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(pipeline=2),
    BOTH,
    Layout(context=2),
    Layout(data=2),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2, tied=True),
    Layout(pipeline=2, context=2, context_kind="ulysses", schedule="interleaved_1f1b", virtual_stages=2, layers=5),
]
PROMPTS = ([5], [1, 2, 3, 4, 5, 6, 7])


@dataclass
class Found:
    """Of one rank. `rows` of the step's batch are this replica's; training's outputs are those of its data rank."""

    rows: slice
    data_rows: slice
    ends: bool  # whether the model ends here
    hidden: float  # distance of the two passes' activations before the head
    scores: np.ndarray  # [4, B, S]
    logits: np.ndarray | None  # [B, S - FIRST + 1, V], from the first chunk's last position on
    outputs: np.ndarray | None  # training's [4, B of the data rank, S]
    generated: list[list[int]]
    weights: Blocks  # before the step
    shards: int  # that the stage gathers from
    same_storage: bool
    same_bits: bool  # of a step afterwards and one without
    events: list[Event]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    config = layout.config(micro_batch_size=2)
    trainer = build_trainer(layout, recorder, config)
    weights, (data_rows, rows) = owned_blocks(trainer, "master"), rows_of(trainer)
    places = [shards.compute.data_ptr() for shards in trainer.stage.shards]
    taken = listen(trainer)
    outputs = trainer.model.outputs(my_batches(trainer, 1), Explore(temperature=1.0))
    outputs = torch.cat([stacked(one) for one in outputs], 1).numpy() if outputs else None

    recorder.phase = "decode"
    model = language_model_of(trainer.model)
    with held(model.stage):
        ours, scores = in_two_chunks(model, samples(config)[rows])
        logits = token_by_token(model, samples(config)[rows])
        generated = generate(model, prompts(rows), Sampling(temperature=0), Limits(3 + rows.start))
    same = same_storage(trainer, model) and places == [shards.compute.data_ptr() for shards in model.stage.shards]
    distance = 0.0 if ours is None else difference(trainer, ours, torch.cat(taken, 1)[:, own(rows, data_rows)])
    return Found(
        rows, data_rows, trainer.mesh.has_head, distance, scores.numpy(), None if logits is None else logits.numpy(),
        outputs, generated, weights, len(model.stage.shards), same,
        same_bits_after_a_step(trainer, layout, config), recorder.events,
    )  # fmt: skip


def samples(config) -> torch.Tensor:
    return global_batch(1, config)


def prompts(rows: slice) -> list[list[int]]:
    """A replica's own, and of each replica's some other number."""
    return [[*prompt, rows.start] for prompt in PROMPTS[rows.start % 2 :]]


def rows_of(trainer: Trainer) -> tuple[slice, slice]:
    """(this data rank's, this replica's) rows of the step's batch: context ranks share out their data rank's."""
    mesh, count = trainer.mesh, trainer.config.train.global_batch_size
    data, context = count // trainer.resolved.data, count // trainer.resolved.zero_size
    first = mesh.coordinate["data"] * data
    mine = first + mesh.context.rank * context
    return slice(first, first + data), slice(mine, mine + context)


def own(rows: slice, data_rows: slice) -> slice:
    return slice(rows.start - data_rows.start, rows.stop - data_rows.start)


def listen(trainer: Trainer) -> list[torch.Tensor]:
    """What the training's head will take, a microbatch after the other."""
    taken: list[torch.Tensor] = []
    if trainer.mesh.has_head:
        head = trainer.stage.units[-1]
        whole = head.forward
        head.forward = lambda x, batch: (taken.append(x.detach()), whole(x, batch))[1]
    return taken


def difference(trainer: Trainer, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of activations of all positions, and of this training rank's part of them."""
    model = trainer.model
    part = model.region.own(ours[model.split.positions(LENGTH, ours.device)])
    return float((part - theirs).abs().max() / theirs.abs().max())


def in_two_chunks(model: LanguageModel, rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(what the head takes [S, B, H], scores [4, B, S])."""
    tokens, labels = rows[:, :-1], rows[:, 1:]
    caches = [model.new_cache(sizes(len(rows))) for _ in range(2)]
    hidden, scores = [], []
    for begin, end in ((0, FIRST), (FIRST, LENGTH)):
        new = step_rows(tokens, begin, end)
        hidden.append(model.hidden(new, caches[0]))
        found = stacked(model.score(new, labels[:, begin:end].flatten(), caches[1]))
        scores.append(found.unflatten(1, (len(rows), -1)))
    if hidden[0] is None:
        return None, torch.cat(scores, 2)
    whole = [part.unflatten(0, (len(rows), -1)).transpose(0, 1) for part in hidden]
    return torch.cat(whole), torch.cat(scores, 2)


def sizes(count: int) -> Sizes:
    """Room for so many sequences; a block that the first chunk leaves half empty, and one that it does not reach."""
    return Sizes(count * -(-LENGTH // BLOCK), BLOCK, budget=1000)


def step_rows(tokens: torch.Tensor, begin: int, end: int) -> list[Row]:
    """The tokens [begin, end) of each sequence, whose blocks lie in no order."""
    count, most = len(tokens), -(-LENGTH // BLOCK)
    rows = []
    for number, sequence in enumerate(tokens[:, begin:end].tolist()):
        table = [(number + 5 * place) % count + place * count for place in range(most)][: -(-end // BLOCK)]
        slots = [table[place // BLOCK] * BLOCK + place % BLOCK for place in range(begin, end)]
        rows.append(Row(number, tuple(sequence), begin, tuple(slots), tuple(table), True))
    return rows


def token_by_token(model: LanguageModel, rows: torch.Tensor) -> torch.Tensor | None:
    """Logits [B, S - FIRST + 1, V] after the first chunk and after each token that follows."""
    cache, found = model.new_cache(sizes(len(rows))), []
    for begin, end in [(0, FIRST), *((at, at + 1) for at in range(FIRST, LENGTH))]:
        found.append(model.next_logits(step_rows(rows, begin, end), cache))
    return None if found[0] is None else torch.stack(found, 1)


def same_storage(trainer: Trainer, model: LanguageModel) -> bool:
    """The same shards behind other units, with other regions where positions were divided."""
    mine, theirs = model.stage, trainer.stage
    divided = trainer.config.parallel.sequence
    regions = [(a.region, b.region) for a, b in zip(mine.units, theirs.units, strict=True) if hasattr(a, "region")]
    return (
        all(a is b for a, b in zip(mine.shards, theirs.shards, strict=True))
        and not set(mine.units) & set(theirs.units)
        and all(isinstance(a, ReplicatedRegion) and isinstance(b, SequenceRegion) == divided for a, b in regions)
        and not any(shards.held for shards in theirs.shards)  # ZeRO-3 has let go of them again
    )


def same_bits_after_a_step(trainer: Trainer, layout: Layout, config) -> bool:
    """Of masters and gradients, beside a trainer that generated nothing."""
    other = build_trainer(layout, config=config)
    for one in (trainer, other):
        one.train_step(my_batches(one, 2), 0.01)
    pairs = zip(trainer.stage.shards, other.stage.shards, strict=True)
    return all(torch.equal(a.master, b.master) and torch.equal(a.gradient, b.gradient) for a, b in pairs)


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def case(request, ranks) -> tuple[Layout, list[Found], torch.Tensor]:
    """(layout, what its ranks found, a plain model's logits of the whole batch)."""
    layout = request.param
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    return layout, found, plain_logits(plain_weights(found), samples(layout.config())[:, :-1], layout.config().model)


def plain_weights(found: list[Found]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(w) for name, w in assemble([rank.weights for rank in found]).items()}


def near(ours: np.ndarray, truth: torch.Tensor | np.ndarray) -> bool:
    truth = torch.as_tensor(truth)
    return (torch.from_numpy(ours) - truth).abs().max() < TOLERANCE * truth.abs().max()


def test_two_chunks_through_a_cache_are_the_whole_sequence(case):
    _, found, logits = case
    for rank in found:
        assert rank.hidden < TOLERANCE
        assert (rank.logits is not None) == rank.ends
        if rank.logits is not None:
            assert near(rank.logits, logits[rank.rows, FIRST - 1 :])


def test_every_stage_gets_the_scores_of_given_tokens(case):
    layout, found, logits = case
    logs = logits.log_softmax(-1)
    labels = samples(layout.config())[:, 1:]
    right = [logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1), logits.logsumexp(-1), -(logs.exp() * logs).sum(-1)]
    for rank in found:
        for ours, truth in zip(rank.scores, right, strict=False):
            assert near(ours, truth[rank.rows])
        assert (torch.from_numpy(rank.scores[3]) == (logits.argmax(-1) == labels)[rank.rows]).all()
        assert rank.scores[3].sum() > 0


def test_scores_are_those_of_the_training_units(case):
    _, found, _ = case
    for rank in found:
        assert (rank.outputs is not None) == rank.ends
        if rank.outputs is not None:
            assert near(rank.scores, rank.outputs[:, own(rank.rows, rank.data_rows)])


def test_each_replica_continues_its_own_prompts(case):
    layout, found, _ = case
    weights, model = plain_weights(found), layout.config().model
    for rank in found:
        expected = []
        for tokens in prompts(rank.rows):
            begin = len(tokens)
            for _ in range(min(3 + rank.rows.start, LENGTH - begin)):
                tokens.append(int(plain_logits(weights, torch.tensor([tokens]), model)[0, -1].argmax()))
            expected.append(tokens[begin:])
        assert rank.generated == expected


def test_the_weights_are_the_trainers_and_training_goes_on_as_if_nothing_had_been(case):
    _, found, _ = case
    assert all(rank.same_storage for rank in found)
    assert all(rank.same_bits for rank in found)


def test_the_transcript_replays_and_weights_are_gathered_once(case):
    layout, found, _ = case
    replay([rank.events for rank in found])
    for rank in found:
        gathers = [e for e in rank.events if (e.kind, e.phase, e.site) == ("issue", "decode", "zero.gather")]
        assert len(gathers) == (rank.shards if layout.data * layout.context > 1 else 0)


def sites() -> set[str]:
    """The literal call sites of the room."""
    folder = Path(inference.__file__).parent
    nodes = (node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if text.startswith("decode.")}


def spoiled(layout: Layout, faults: list[Message]) -> list[list[np.ndarray]]:
    """Scores, and logits where the model ends: without a fault, then with each."""
    trainer = build_trainer(layout, Recorder())  # by what it writes down a fault knows its site
    model = language_model_of(trainer.model)
    found = []
    with held(model.stage):
        for planted in (nullcontext(), *(fault.planted() for fault in faults)):
            with planted:
                _, scores = in_two_chunks(model, samples(trainer.config))
                logits = token_by_token(model, samples(trainer.config))
            found.append([scores.numpy(), *([] if logits is None else [logits.numpy()])])
    return found


def test_every_call_site_is_run_and_a_fault_there_is_seen_in_the_numbers(ranks):
    messages = [Message(f"decode.{what}", way) for what in ("activation", "result") for way in ("send", "recv")]
    faults = [*messages, Message("decode.logits", "all_gather")]
    assert {fault.site for fault in faults} == sites()
    found = ranks.run(spoiled, BOTH.world, BOTH, faults)
    for number, fault in enumerate(faults, start=1):
        wrong = [not np.allclose(a, b, rtol=1e-6) for rank in found for a, b in zip(rank[0], rank[number], strict=True)]
        assert any(wrong), f"{fault} changes nothing"


def test_weights_that_do_not_stay_are_refused_before_anything_is_sent():
    model = language_model_of(build_trainer(Layout(layers=2)).model)
    with pytest.raises(RuntimeError, match="weights that stay: with held"):
        model.next_logits([Row(0, (0,), 0, (0,), (0,), True)], model.new_cache(sizes(1)))


def test_a_model_that_ends_in_a_scalar_is_refused():
    model = language_model_of(build_trainer(Layout(layers=1)).model)
    scalar = model.config.model_copy(update={"model": model.config.model.model_copy(update={"head": "scalar"})})
    with pytest.raises(UsageError, match=r"model\.head = scalar: must be logits"):
        replace(model, config=scalar)
