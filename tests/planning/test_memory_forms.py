"""The closed forms of memory against the storages alive: every ZeRO stage, schedule and recompute choice."""

from dataclasses import replace

import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches, reshaped
from support.paper import assert_memory_is, memory_form, ranks_of, wide_config

from megatron_lite.config import Config
from megatron_lite.planning.memory import StorageTracker
from megatron_lite.planning.operation_memory import Tape
from megatron_lite.planning.paper import step_on_paper
from tools.step_on_paper import block_keeps

ONE = Layout(layers=8)
WHOLE = replace(ONE, tensor=2, pipeline=2, data=2)
RECOMPUTE = ("none", "selective", "full", "every_2")
ZERO = [replace(ONE, data=2, zero_stage=stage, zero_regather=regather)
        for stage in (0, 1, 2, 3) for regather in ("microbatch", "step")]  # fmt: skip
SCHEDULES = [
    replace(ONE, pipeline=4, schedule=name, virtual_stages=chunks)
    for name, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 2), ("zb_h1", 1), ("zb_v", 2))
]
LAYOUTS = [
    *ZERO,
    *SCHEDULES,
    *(replace(ONE, recompute=policy) for policy in RECOMPUTE),
    *(replace(ONE, tensor=2, recompute=policy) for policy in RECOMPUTE),
    replace(ONE, tensor=2, sequence=False),
    replace(ONE, data=4, zero_group=2),
    replace(ONE, data=2, tied=True),
    *(replace(ONE, context=ranks) for ranks in (2, 4)),
    *(replace(ONE, context=ranks, context_kind="ulysses") for ranks in (2, 8)),
    WHOLE,
    replace(WHOLE, zero_regather="step"),
    replace(WHOLE, recompute="selective"),
    replace(WHOLE, schedule="zb_h1", tied=True),
    replace(WHOLE, schedule="zb_v", virtual_stages=2, recompute="full"),
    replace(WHOLE, pipeline=4, schedule="interleaved_1f1b", virtual_stages=2, zero_stage=2),
    replace(ONE, data=2, ema=0.9),
    replace(WHOLE, ema=0.9, tied=True),
]
CHUNKED = [
    *(replace(ONE, loss_chunk=chunk) for chunk in (16, 100, 200, 256)),
    *(
        replace(ONE, tensor=2, loss_chunk=chunk, sequence=sequence)
        for chunk in (16, 64, 128)
        for sequence in (True, False)
    ),
    replace(ONE, data=2, loss_chunk=32),
    replace(ONE, data=2, loss_chunk=32, tied=True, zero_regather="step"),
    replace(WHOLE, loss_chunk=32),
    replace(WHOLE, loss_chunk=32, schedule="gpipe"),
    replace(WHOLE, loss_chunk=32, schedule="zb_h1", tied=True),
]
# Not the ring: gloo's threads hold a message's buffers for a moment after its wait.
REAL = [ZERO[4], ZERO[6], ZERO[7], WHOLE, replace(WHOLE, schedule="zb_h1", recompute="selective"), SCHEDULES[4],
        replace(WHOLE, loss_chunk=32)]  # fmt: skip
# Mixed precision has every term of the forms; one dtype throughout has fewer.
DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.nightly)])


def compare(layout: Layout, config: Config) -> None:
    for rank in ranks_of(layout):
        step = step_on_paper(config, layout.world, rank)
        assert_memory_is(step, memory_form(config, layout.world, step.stage))


@DTYPES
@pytest.mark.parametrize("layout", [*LAYOUTS, *CHUNKED], ids=str)
def test_the_peak_is_the_forms_on_the_first_and_the_last_stage(layout, dtype):
    compare(layout, wide_config(replace(layout, dtype=dtype)))


@DTYPES
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_the_peak_of_two_sequences_at_once_is_the_forms(recompute, dtype):
    layout = replace(ONE, recompute=recompute, dtype=dtype)
    compare(layout, wide_config(layout, micro_batch_size=2))


@DTYPES
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_context_ranks_keep_their_share_of_a_long_sequence_and_the_rings_buffers(ranks, dtype):
    layouts = [replace(ONE, context=context, dtype=dtype, layers=2) for context in (1, ranks)]
    configs = [wide_config(layout, sequence_length=6144, global_batch_size=1) for layout in layouts]
    for layout, config in zip(layouts, configs, strict=True):
        compare(layout, config)
    whole, part = (block_keeps(config, layout.world) for layout, config in zip(layouts, configs, strict=True))
    assert part * ranks == whole


@pytest.mark.parametrize(("ranks", "chunk"), [(1, 512), (2, 512), (8, 256)])
def test_in_chunks_a_vocabulary_of_128000_takes_a_chunks_logits_alone(ranks, chunk):
    """One block of the 65B model beside its embedding and head, a sequence of 8,192 tokens."""
    layout = Layout(tensor=ranks, layers=1, dtype="bfloat16")
    sizes = {"hidden_size": 8192, "intermediate_size": 25600, "num_attention_heads": 64, "num_key_value_heads": 8,
             "vocab_size": 128000}  # fmt: skip
    whole = layout.config(global_batch_size=1, sequence_length=8192)
    whole = reshaped(whole, **sizes)
    chunked = whole.model_copy(update={"kernels": whole.kernels.model_copy(update={"loss_chunk": chunk})})
    for config in (whole, chunked):
        compare(layout, config)
    peaks = [step_on_paper(config, ranks, 0).peak for config in (whole, chunked)]
    all_logits, some_logits = (2 * tokens * 128000 // ranks for tokens in (8192, chunk * ranks))
    assert peaks[0] - peaks[1] > 0.5 * (all_logits - some_logits)


@pytest.mark.parametrize(
    "layout", [replace(ONE, data=2, layers=2, dtype="bfloat16"), replace(WHOLE, tied=True)], ids=str
)
def test_a_moving_average_takes_one_buffer_a_shard_to_the_byte(layout):
    plain, averaged = (wide_config(replace(layout, ema=ema)) for ema in (None, 0.9))
    for rank in ranks_of(layout):
        before, after = (step_on_paper(config, layout.world, rank) for config in (plain, averaged))
        forms = [memory_form(config, layout.world, before.stage).state for config in (plain, averaged)]
        assert after.peak - before.peak == forms[1] - forms[0] > 0
        assert after.traffic == before.traffic


def real_step(layout: Layout) -> tuple[int, int]:
    """(stage, peak bytes) of a real step on this rank."""
    tracker = StorageTracker(torch.device("cpu"))
    with tracker:
        trainer = build_trainer(layout, config=wide_config(layout))
        trainer.train_step(my_batches(trainer, 1), learning_rate=1e-3)
    return trainer.mesh.stage, tracker.peak


@pytest.mark.parametrize("layout", REAL, ids=str)
def test_the_storages_of_real_ranks_reach_the_forms_peak(ranks, layout):
    layout = replace(layout, dtype="float32")
    config = wide_config(layout)
    for stage, peak in ranks.run(real_step, layout.world, layout)[layout.tensor - 1 :: layout.tensor]:
        assert peak == pytest.approx(memory_form(config, layout.world, stage).total, rel=0.02)


def test_a_tape_remembers_its_fullest_moment():
    tape = Tape()
    tape.take(5)
    tape.take_gradient(3)
    tape.give(5)
    tape.take(4)
    assert (tape.live, tape.peak, tape.gradients_at_peak) == (7, 8, 3)
