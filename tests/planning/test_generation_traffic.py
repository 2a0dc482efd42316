"""The closed forms of generation's messages against engines that run: each step's bytes by axis, site and operation."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from support.asking import build_to_ask
from support.layouts import Layout

from megatron_lite.config import Config, LoraConfig, resolve
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.generation import gathered
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Row, Sizes
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.planning.generation_traffic import GenerationTraffic, StepSizes, Traffic

LENGTH = 16
FEW = Sizes(blocks=8, block=3, rows=5, budget=9)  # prompts go in chunks, and some rows give way
LAYOUTS = [
    Layout(),
    Layout(tensor=2, tied=True),
    Layout(pipeline=2, dtype="bfloat16"),
    Layout(tensor=2, pipeline=2, loss_chunk=3, lora=LoraConfig(rank=3, targets=("k_proj", "o_proj"))),
    Layout(tensor=2, pipeline=2, loss_chunk=3, tied=True, dtype="bfloat16"),
    Layout(pipeline=2, data=2, schedule="zb_v", virtual_stages=2, tied=True, layers=5),
    Layout(pipeline=3, schedule="zb_v", virtual_stages=2, layers=7),
    Layout(pipeline=3, schedule="interleaved_1f1b", virtual_stages=2, layers=6),
    Layout(tensor=2, data=2, dtype="float32"),
    Layout(data=2, context=2, zero_group=2),
    Layout(data=2, zero_stage=0),
]
SCORED = 7  # tokens whose labels are scored: chunks of 3, 3 and 1


@dataclass
class Found:
    """Of one rank: its stage, its steps as they were planned, and its transcript with a phase for each."""

    stage: int
    steps: list[StepSizes]
    events: list[Event]


def requests() -> list[Request]:
    """The first prompt takes more than a step; the later it is, the fewer log-probabilities are asked: 4, 0, none."""
    wanted = [(11, 3, 4), (3, 5, 0), (4, 8, None), (5, 8, None), (6, 8, None)]
    return [
        Request(number, tuple(range(number, number + prompt)), Limits(new), Sampling(1.0), log_probabilities=most)
        for number, (prompt, new, most) in enumerate(wanted)
    ]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    model = build_to_ask(layout, recorder)
    steps: list[StepSizes] = []
    recorder.phase = "gather"
    with held(model.stage):
        engine = Engine(model, FEW)
        for request in requests():
            engine.add(request)
        planned = engine.scheduler.plan

        def plan():
            """What is planned, written down by what each sample was asked with."""
            step = planned()
            asked = [engine._samples[row.sequence].request.log_probabilities for row in step.drawing]
            most = max((number for number in asked if number is not None), default=None)
            steps.append(StepSizes(sum(len(row.tokens) for row in step.rows), len(step.drawing), most))
            return step

        engine.scheduler.plan = plan
        while engine.busy:
            recorder.phase = f"step {len(steps)}"
            engine.step()
        recorder.phase = "score"
        row = Row(0, tuple(range(SCORED)), 0, tuple(range(SCORED)), (0, 1, 2), False)
        model.score([row], torch.arange(SCORED), model.new_cache(Sizes(3, 3, 1)))
    recorder.phase = "answers"
    gathered(["abc"] * (1 + model.mesh.zero.rank), model.mesh)
    return Found(model.mesh.stage, steps, recorder.events)


def sent(events: list[Event], phase: str) -> Traffic:
    """What a rank really sent."""
    mine = [event for event in events if event.kind == "issue" and event.phase == phase]
    calls = Counter((event.axis, event.site, event.operation) for event in mine)
    size: Counter = Counter()
    for event in mine:
        size[event.axis, event.site, event.operation] += event.bytes
    return {key: (calls[key], size[key]) for key in calls}


def forms(config: Config, world: int, stage: int) -> GenerationTraffic:
    resolved = resolve(config, world)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    return GenerationTraffic(config, resolved, schedule, stage, NOTHING)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_step_of_an_engine_sends_what_the_forms_say_to_the_byte(ranks, layout):
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    for rank, one in enumerate(found):
        form = forms(layout.config(sequence_length=LENGTH), layout.world, one.stage)
        assert sent(one.events, "gather") == form.gather(), f"rank {rank}"
        for number, step in enumerate(one.steps):
            assert sent(one.events, f"step {number}") == form.step(step), f"rank {rank}, step {number}: {step}"
        assert sent(one.events, "score") == form.score(SCORED), f"rank {rank}"
        # The last replica's are a list of JSON: so many times 'abc', in quotes, with commas between.
        replicas = layout.data * layout.context
        assert sent(one.events, "answers") == form.answers(replicas * len('"abc", ')), f"rank {rank}"
        phases = {"connect", "gather", "score", "answers", *(f"step {number}" for number in range(len(one.steps)))}
        assert {event.phase for event in one.events} <= phases


def test_the_steps_that_are_compared_differ_in_what_they_compute_draw_and_tell():
    """On one process; the scheduler plans the same everywhere."""
    steps = run(Layout()).steps
    assert {step.most_likely for step in steps} == {None, 0, 4}
    assert {step.tokens for step in steps} >= {1, FEW.budget}
    assert {step.draws for step in steps} >= {0, 1, 3}
    once = sum(len(one.prompt) + one.limits.max_new_tokens - 1 for one in requests())
    assert sum(step.tokens for step in steps) > once  # who gave way is computed again


def test_by_hand_on_two_tensor_ranks_and_two_stages():
    """Two blocks a stage of hidden 32 in float64; 61 pieces are padded to 64."""
    config, hidden = Layout(tensor=2, pipeline=2).config(), 32 * 8
    step, nothing_drawn = StepSizes(tokens=5, draws=3, most_likely=2), StepSizes(tokens=5, draws=0)
    blocks = {
        ("tensor", "attention.leave", "all_reduce"): (2, 2 * 5 * hidden),
        ("tensor", "mlp.leave", "all_reduce"): (2, 2 * 5 * hidden),
    }
    first, last = (forms(config, 4, stage) for stage in (0, 1))
    down, up = "pipeline.forward.down", "pipeline.backward.up"
    result = 3 * (1 + 1 + 2 + 2) * 8  # of each draw a token, its log-probability, two ids, two log-probabilities
    sends = {
        **blocks,
        ("tensor", "embedding.leave", "all_reduce"): (1, 5 * hidden),
        (down, "decode.activation", "send"): (1, 5 * hidden),
    }
    receives = {**blocks, (down, "decode.activation", "recv"): (1, 5 * hidden)}
    assert first.step(nothing_drawn) == sends
    assert last.step(nothing_drawn) == receives
    assert first.step(step) == {**sends, (up, "decode.result", "recv"): (1, result)}
    assert last.step(step) == {
        **receives,
        ("tensor", "decode.logits", "all_gather"): (1, 3 * 64 * 8),
        (up, "decode.result", "send"): (1, result),
    }
    assert first.gather() == last.gather() == {}


def test_by_hand_the_gather_of_a_trained_models_weights_is_each_shards_once():
    """Two data ranks: embedding, four blocks and head, whose feed-forward weights alone are trained."""
    layout = replace(Layout(data=2), trainable=("*.mlp.*",))
    config = layout.config()
    resolved = resolve(config, 2)
    form = GenerationTraffic(config, resolved, schedule_of(config, resolved, 1), 0)
    feed, others = 3 * 40 * 32, (32 + 2 * 16) * 32 + 32 * 32 + 2 * 32
    elements = 64 * 32 + 4 * (feed + others) + 64 * 32 + 32
    assert form.gather() == {("zero", "zero.gather", "all_gather"): (1 + 4 * 2 + 1, elements * 8)}
