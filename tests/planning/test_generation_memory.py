"""The closed forms of generation's memory: weights to the byte, and a step's peak, against the real model on paper."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F
from support.layouts import Layout, reshaped
from support.paper import Holds, generation_on_paper, wide_config

from megatron_lite.config import Config, load_config, resolve
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import schedule_of
from megatron_lite.planning.generation_memory import GenerationMemory
from tools.step_on_paper import decode_table, layouts_to_generate

ROOT = Path(__file__).parents[2]
GPUS_64 = ROOT / "examples" / "pretrain_65b" / "gpus_64.yaml"
LAYOUTS = [
    Layout(),
    Layout(tensor=2, dtype="bfloat16"),
    Layout(pipeline=2, tied=True, dtype="bfloat16"),
    Layout(tensor=2, pipeline=2, layers=5),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2, tied=True, dtype="float32"),
    Layout(data=2, dtype="bfloat16"),
    Layout(data=2, zero_stage=0),
    Layout(tensor=2, data=3, tied=True),
    Layout(data=2, context=2, zero_group=2, dtype="bfloat16"),
]


def forms(config: Config, world: int, stage: int) -> GenerationMemory:
    resolved = resolve(config, world)
    return GenerationMemory(config, resolved, schedule_of(config, resolved, resolved.microbatches), stage, NOTHING)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_weights_are_the_forms_to_the_byte_on_every_rank(layout):
    config = layout.config(sequence_length=48)
    for rank in range(layout.world):
        holds = generation_on_paper(config, layout.world, rank)
        assert holds.weights == forms(config, layout.world, holds.stage).weights, f"rank {rank}"


def test_by_hand_two_tensor_ranks_hold_half_of_each_matrix_and_all_norms():
    """Four blocks of hidden 32, two of four key-value heads of 8; 61 pieces are padded to 64."""
    halves = 2 * 64 * 32 + 4 * ((32 + 2 * 16) * 32 + 32 * 32 + 3 * 40 * 32)
    assert forms(Layout(tensor=2).config(), 2, 0).weights == 8 * (halves // 2 + 9 * 32)


@pytest.fixture
def fused_attention(monkeypatch):
    """On paper attention with a mask becomes products that copy its keys; a kernel takes nothing beside its result."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, keys, values, attn_mask: q.clone())


def assert_step_is(holds: Holds, form: GenerationMemory, length: int, sequences: int) -> None:
    expected = form.weights + sequences * (form.cache(length) + form.row(length))
    assert holds.peak == pytest.approx(expected, rel=0.02)
    # The step by itself, which is little beside the caches.
    assert holds.step == pytest.approx(sequences * form.row(length), rel=0.05)


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2), Layout(tensor=2, pipeline=2)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("vocab_size", [999, 20_000])
def test_a_step_takes_a_layers_keys_and_values_or_the_logits(fused_attention, layout, dtype, vocab_size):
    config = reshaped(wide_config(replace(layout, dtype=dtype), sequence_length=1024), vocab_size=vocab_size)
    for rank in range(0, layout.world, layout.tensor):
        holds = generation_on_paper(config, layout.world, rank, sequences=40)
        assert_step_is(holds, forms(config, layout.world, holds.stage), 1024, 40)


@pytest.mark.parametrize("gpus", [8, 16, 32, 64])
def test_as_many_sequences_as_are_said_to_fit_do_on_paper(fused_attention, gpus):
    """The 65B model, tensor 8: on the stages where it begins and ends."""
    config = next(one for count, one in layouts_to_generate(load_config(GPUS_64, []), 64) if count == gpus)
    stages, room, length = gpus // 8, 72 * 2**30, config.train.sequence_length
    memory = [forms(config, gpus, stage) for stage in range(stages)]
    sequences = min(form.sequences(length, room) for form in memory)
    for stage in {0, stages - 1}:
        holds = generation_on_paper(config, gpus, 8 * stage, sequences)
        assert_step_is(holds, memory[stage], length, sequences)
        assert holds.peak < 1.005 * room
    one_more = [form.weights + (sequences + 1) * (form.cache(length) + form.row(length)) for form in memory]
    assert max(one_more) > room


def test_no_sequence_fits_where_the_weights_do_not():
    form = forms(Layout().config(), 1, 0)
    assert form.sequences(16, form.weights - 1) == 0
    assert form.sequences(16, form.weights + 3 * (form.cache(16) + form.row(16))) == 3


def test_the_table_in_the_docs_is_todays_and_its_first_row_is_right_by_hand():
    """65B on tensor 8: 80 layers of hidden 8,192, a key-value head of 128 on each rank."""
    text = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    words, _, heading, dashes, first, *others = decode_table(load_config(GPUS_64, []), 64, 80.0)
    assert "\n".join(["", heading, dashes, first, *others, ""]) in text
    assert words.startswith("computed, not measured: ")
    block = 8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 25_600
    weights = 2 * ((2 * 128_000 * 8192 + 80 * block) // 8 + (2 * 80 + 1) * 8192)
    cache, row = 2 * 80 * 128 * 8192 * 2, 128_000 * (2 + 4 + 4 * 8)
    sequences = (72 * 2**30 - weights) // (cache + row)
    tensor = (2 * 80 + 1) * 8192 * 2 + 128_000 * 2
    cells = [f"{weights / 2**30:.2f}", f"{cache / 2**20:.1f}", f"{row / 2**20:.2f}", str(sequences), str(sequences)]
    assert first == f"| 8 | tensor 8 | {' | '.join(cells)} | {tensor / 1e3:,.1f} | 0.0 | {2 * 80 + 1 + 1} |"
    assert len(others) == 2 + 3 + 4
