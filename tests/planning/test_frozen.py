"""Where weights are frozen, also under adapters, where the model ends with a value, where it is only asked: the closed
forms of memory and traffic against steps on paper.
"""

from dataclasses import replace

import pytest
from support.layouts import Layout, build_trainer, global_batch
from support.objectives import Regression
from support.paper import assert_memory_is, memory_form, ranks_of, wide_config

from megatron_lite.config import Config, LoraConfig, resolve
from megatron_lite.model.freezing import NOTHING
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.ledger import Entry, connect_ledger, ledger
from megatron_lite.planning.paper import choice_on_paper, fake_world, forward_on_paper, step_on_paper
from megatron_lite.planning.sizes import CROSS_ENTROPY, Numbers, forward_only
from megatron_lite.planning.traffic import connect_traffic, step_traffic
from megatron_lite.training.boundaries import microbatches_of

ONE = Layout(layers=4, dtype="bfloat16")
CUBE = replace(ONE, tensor=2, pipeline=2, data=2)
SCALAR = {"head": "scalar", "objective": Regression()}
EVERY = LoraConfig(rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
SOME_TARGETS = LoraConfig(rank=8, targets=("v_proj", "up_proj", "down_proj"))
NORMS, FEED, ATTENTION = ("*norm*",), ("*.mlp.*",), ("*.self_attn.*",)
BLOCKS, SOME = ("model.layers.*",), ("model.layers.3.*", "model.embed_tokens.weight")
TRAINED = (NORMS, FEED, ATTENTION, BLOCKS, SOME)


def nightly(layouts: list[Layout]) -> list:
    return [pytest.param(layout, marks=pytest.mark.nightly) for layout in layouts if layout not in STEPS]


STEPS = [
    replace(ONE, trainable=NORMS),
    replace(ONE, trainable=FEED, tensor=2, recompute="selective"),
    replace(ONE, trainable=ATTENTION, data=2, zero_stage=2, recompute="full"),
    replace(CUBE, trainable=BLOCKS, schedule="zb_h1", loss_chunk=32),
    replace(CUBE, trainable=ATTENTION, schedule="zb_h1", tied=True),
    replace(CUBE, trainable=SOME, tied=True, zero_regather="step", ema=0.9),
    replace(ONE, data=2, context=2, context_kind="ulysses", zero_stage=0, **SCALAR),
    replace(CUBE, trainable=("score.weight", *FEED), schedule="zb_h1", **SCALAR),
    replace(CUBE, lora=EVERY, schedule="zb_h1", recompute="selective"),
]
MORE = [
    *(replace(ONE, lora=lora, recompute=recompute, qk_norm=lora is SOME_TARGETS)
      for lora in (EVERY, SOME_TARGETS) for recompute in ("none", "selective", "full")),
    *(replace(CUBE, lora=EVERY, sequence=sequence, schedule=schedule, zero_regather=regather)
      for sequence in (True, False) for schedule in ("1f1b", "zb_h1") for regather in ("microbatch", "step")),
    *(replace(ONE, lora=SOME_TARGETS, data=2, zero_stage=stage) for stage in (0, 1, 2, 3)),
    *(replace(ONE, lora=EVERY, context=2, context_kind=kind) for kind in ("ring", "ulysses")),
    replace(CUBE, lora=EVERY, trainable=FEED, schedule="zb_h1"),
    replace(ONE, lora=EVERY, trainable=NORMS, recompute="selective"),
    replace(ONE, lora=EVERY, tensor=2, data=2, **SCALAR),
    *(replace(ONE, trainable=trained, recompute=recompute)
      for trained in TRAINED for recompute in ("none", "selective", "full")),
    *(replace(ONE, trainable=trained, tensor=2, sequence=sequence)
      for trained in TRAINED for sequence in (True, False)),
    # Of norms alone, shards over several ranks are smaller than what the tracker sees.
    *(replace(ONE, trainable=trained, data=2, zero_stage=stage) for trained in TRAINED[1:] for stage in (0, 1, 2, 3)),
    *(replace(ONE, trainable=trained, data=2, zero_regather="step", tied=True) for trained in TRAINED[1:]),
    *(replace(ONE, trainable=trained, context=2, context_kind=kind)
      for trained in TRAINED[1:] for kind in ("ring", "ulysses")),
    *(replace(CUBE, trainable=trained, loss_chunk=32, tied=True) for trained in TRAINED[1:]),
    *(replace(CUBE, trainable=trained, schedule="zb_h1", recompute="selective") for trained in TRAINED[1:]),
    *(replace(CUBE, trainable=("lm_head.weight",), schedule=schedule, loss_chunk=chunk)
      for schedule in ("1f1b", "zb_h1") for chunk in (None, 32)),
    *(replace(ONE, tensor=2, context=2, sequence=sequence, **SCALAR) for sequence in (True, False)),
    *(replace(ONE, data=2, zero_stage=stage, **SCALAR) for stage in (0, 2, 3)),
    *(replace(CUBE, trainable=trained, **SCALAR) for trained in (None, ("model.norm.weight", *FEED))),
]  # fmt: skip
ASKED = [
    replace(ONE, data=2, recompute="selective"),
    replace(CUBE, loss_chunk=32),
    replace(CUBE, schedule="zb_v", virtual_stages=2, zero_regather="step", **SCALAR),
]
MORE_ASKED = [
    ONE,
    CUBE,
    *(replace(ONE, data=2, zero_stage=stage, tied=True) for stage in (0, 2, 3)),
    *(replace(ONE, context=2, tensor=2, context_kind=kind) for kind in ("ring", "ulysses")),
    replace(ONE, pipeline=4, schedule="gpipe"),
    replace(CUBE, sequence=False, tied=True),
    replace(CUBE, sequence=False, recompute="full", **SCALAR),
]


def numbers_of(layout: Layout) -> Numbers:
    return CROSS_ENTROPY if layout.objective is None else Numbers(sums=1, maxima=1, denominators=1)


def schedule_for(layout: Layout, config: Config):
    resolved = resolve(config, layout.world)
    return resolved, layout.schedule_of(config, resolved, resolved.microbatches)


def shown(entries: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    return {key: (entry.calls, entry.bytes) for key, entry in entries.items()}


@pytest.mark.parametrize("layout", [*STEPS, *nightly(MORE)], ids=str)
def test_a_step_takes_the_memory_of_its_forms(layout):
    config = wide_config(layout, global_batch_size=6)
    for rank in ranks_of(layout):
        step = step_on_paper(config, layout.world, rank, objective=layout.objective)
        assert_memory_is(step, memory_form(config, layout.world, step.stage))


@pytest.mark.parametrize("layout", [*ASKED, *nightly(MORE_ASKED)], ids=str)
def test_a_model_that_is_only_asked_takes_the_memory_and_the_traffic_of_its_forms(layout):
    config = wide_config(layout, global_batch_size=6)
    resolved, schedule = schedule_for(layout, config)
    for rank in ranks_of(layout):
        step = forward_on_paper(config, layout.world, rank, layout.objective)
        expected = memory_form(config, layout.world, step.stage, NOTHING, asked=True)
        assert_memory_is(step, expected)
        asked = forward_only(schedule), step.stage, NOTHING, numbers_of(layout)
        assert shown(step.traffic) == step_traffic(config, resolved, *asked)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("layout", [*STEPS, *nightly(MORE)], ids=str)
def test_a_step_and_what_goes_before_it_send_what_the_forms_say(layout, dtype):
    config = replace(layout, dtype=dtype).config()
    resolved, schedule = schedule_for(layout, config)
    for rank in ranks_of(layout):
        recorder = Recorder()
        with fake_world(rank, layout.world):
            trainer = build_trainer(layout, recorder, config, "meta", choice_on_paper(config))
            mine = global_batch(1, config).chunk(layout.data)[0].to("meta")
            trainer.train_step(microbatches_of(mine, config), learning_rate=1e-3)
        forms = config, resolved, schedule, trainer.mesh.stage, None, numbers_of(layout)
        assert shown(ledger(recorder.events)) == step_traffic(*forms)
        assert shown(connect_ledger(recorder.events)) == connect_traffic(*forms)


def test_frozen_weights_are_gathered_as_ever_and_send_nothing_back():
    """By hand: two data ranks, six microbatches, four blocks, of which the feed-forward layers are trained."""
    layout = replace(ONE, data=2, trainable=FEED, dtype="float32")
    resolved, schedule = schedule_for(layout, layout.config())
    found = step_traffic(layout.config(), resolved, schedule, 0)
    feed, attention, norms, vocabulary = 3 * 40 * 32, (32 + 2 * 16) * 32 + 32 * 32, 2 * 32, 64 * 32
    assert found["zero.reduce", "reduce_scatter"] == (6 * 4, 4 * 6 * 4 * feed)
    # Both shards of a block in F and in B; once where the head's F and B follow each other, or the embedding's B and F.
    blocks, head, embedding = 12 * 4, 6, 7
    size = blocks * (feed + attention + norms) + head * (vocabulary + 32) + embedding * vocabulary
    assert found["zero.gather", "all_gather"] == (2 * blocks + head + embedding, 4 * size)


def test_a_frozen_weight_is_its_copy_and_a_trained_one_eighteen_bytes_and_four_with_an_average():
    """By hand, in bfloat16: beside its copy a trained weight has a master, a sum and two moments in float32."""
    feed, attention, norms, vocabulary = 3 * 40 * 32, (32 + 2 * 16) * 32 + 32 * 32, 2 * 32, 64 * 32
    every = 4 * (feed + attention + norms) + 2 * vocabulary + 32
    for trained, size in ((FEED, 4 * feed), (ATTENTION, 4 * attention), (NORMS, 4 * norms + 32)):
        config = replace(ONE, trainable=trained).config()
        assert memory_form(config, 1, 0).state == 2 * every + 16 * size
        averaged = replace(ONE, trainable=trained, ema=0.9).config()
        assert memory_form(averaged, 1, 0).state == 2 * every + 20 * size
    assert memory_form(ONE.config(), 1, 0, NOTHING, asked=True).state == 2 * every
    assert memory_form(replace(ONE, ema=0.9).config(), 1, 0, NOTHING, asked=True).state == 2 * every
