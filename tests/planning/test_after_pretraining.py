"""Fine-tuning, a reward model and DPO of packed rows on paper: memory and messages are those of the closed forms."""

from dataclasses import replace

import pytest
from support.layouts import Layout, reshaped
from support.paper import assert_memory_is, memory_form, ranks_of
from support.rows import aligned

from megatron_lite.alignment.run import objective_of
from megatron_lite.config import AlignedConfig, LoraConfig, resolve
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import schedule_of
from megatron_lite.planning.paper import PaperStep, forward_on_paper, packed, step_on_paper
from megatron_lite.planning.sizes import forward_only, numbers_of
from megatron_lite.planning.traffic import step_traffic

ONE = Layout(layers=4, dtype="bfloat16")
CUBE = replace(ONE, tensor=2, pipeline=2, data=2)
LORA = LoraConfig(rank=8, targets=("q_proj", "v_proj", "up_proj", "down_proj"))
DOCUMENTS = 4
CASES = [
    ("sft", replace(CUBE, loss_chunk=32)),
    ("sft", replace(CUBE, lora=LORA, zero_regather="step")),
    ("reward", replace(CUBE, schedule="zb_h1")),
    ("reward", replace(ONE, data=2, lora=LORA)),
    ("dpo", replace(CUBE, loss_chunk=32)),
    ("dpo", replace(CUBE, loss_chunk=32, schedule="zb_h1")),
    ("dpo", replace(CUBE, loss_chunk=32, lora=LORA)),
]
MORE = [
    *((algorithm, replace(ONE, context=2, tensor=2, context_kind=kind, loss_chunk=32))
      for algorithm in ("sft", "dpo") for kind in ("ring", "ulysses")),
    *((algorithm, replace(ONE, lora=lora)) for algorithm in ("sft", "reward", "dpo") for lora in (None, LORA)),
    *(("dpo", replace(ONE, tensor=2, loss_chunk=chunk, sequence=sequence))
      for chunk in (16, 100, 256) for sequence in (True, False)),
    *(("dpo", replace(ONE, data=2, loss_chunk=32, zero_stage=stage, tied=True)) for stage in (0, 2, 3)),
    ("sft", replace(CUBE, lora=LORA, recompute="full")),
]  # fmt: skip
EVERY = [*CASES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in MORE)]


def config_of(algorithm: str, layout: Layout) -> AlignedConfig:
    """On a model whose tensors are large beside what the tracker leaves out."""
    config = aligned(layout, algorithm, global_batch_size=6, sequence_length=512)
    wide = {"hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 8, "num_key_value_heads": 4,
            "vocab_size": 999}  # fmt: skip
    return reshaped(config, **wide)


def shown(step: PaperStep) -> dict[tuple[str, str], tuple[int, int]]:
    return {key: (entry.calls, entry.bytes) for key, entry in step.traffic.items()}


@pytest.mark.parametrize(("algorithm", "layout"), EVERY, ids=str)
def test_a_step_takes_the_memory_and_sends_the_bytes_of_its_forms(algorithm, layout):
    config = config_of(algorithm, layout)
    resolved, objective = resolve(config, layout.world), objective_of(config)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    for rank in ranks_of(layout):
        batch = packed(config, objective, DOCUMENTS)
        step = step_on_paper(config, layout.world, rank, objective=objective, batch=batch)
        assert_memory_is(step, memory_form(config, layout.world, step.stage))
        assert shown(step) == step_traffic(config, resolved, schedule, step.stage)


@pytest.mark.parametrize("layout", [CUBE, replace(CUBE, loss_chunk=32, lora=LORA)], ids=str)
def test_a_reference_that_is_asked_takes_what_its_forms_say(layout):
    config = config_of("dpo", layout).model_copy(update={"lora": None})
    resolved, objective = resolve(config, layout.world), objective_of(config)
    schedule = forward_only(schedule_of(config, resolved, resolved.microbatches))
    for rank in ranks_of(layout):
        batch = packed(config, objective, DOCUMENTS)
        step = forward_on_paper(config, layout.world, rank, objective, batch=batch)
        assert_memory_is(step, memory_form(config, layout.world, step.stage, NOTHING, asked=True))
        assert shown(step) == step_traffic(config, resolved, schedule, step.stage, NOTHING)


@pytest.mark.parametrize("algorithm", ["sft", "reward", "dpo"])
def test_the_forms_know_how_many_numbers_an_algorithms_objective_gives(algorithm):
    config = config_of(algorithm, ONE)
    objective, found = objective_of(config), numbers_of(config)
    assert (found.sums, found.maxima) == (len(objective.sums), len(objective.maxima))
    sequences = packed(config, objective, DOCUMENTS)()
    assert found.denominators == objective.denominators(sequences).numel()
