"""The closed forms of memory against the storages alive: every ZeRO stage, schedule and recompute choice."""

from typing import Any

import pytest
import torch

from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.planning.memory import StorageTracker
from megatron_lite.planning.memory_forms import Memory, peak_memory
from megatron_lite.planning.paper import step_on_paper
from megatron_lite.planning.unit_memory import Tape
from megatron_lite.training.step import Trainer, schedule_of

# Sizes a layout, a rank of it that is worth a look, and what else is chosen.
ZERO = [{"data": 2, "zero_stage": stage, "zero_regather": regather}
        for stage in (0, 1, 2, 3) for regather in ("microbatch", "step")]  # fmt: skip
SCHEDULES = [
    {"pipeline": 4, "schedule": name, "virtual_stages": chunks}
    for name, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 2), ("zb_h1", 1), ("zb_v", 2))
]
RECOMPUTE = [{"recompute": policy} for policy in ("none", "selective", "full", "every_2")]
WHOLE = {"tensor": 2, "pipeline": 2, "data": 2}
OTHERS = [
    {"tensor": 2, "sequence": False},
    {"data": 4, "zero_group": 2},
    {"micro_batch_size": 2},
    {"micro_batch_size": 2, "recompute": "selective"},
    {"tie_word_embeddings": True, "data": 2},
    {"context": 2},
    {"context": 4},
    {"context": 2, "context_kind": "ulysses"},
    {"context": 8, "context_kind": "ulysses"},
    WHOLE,
    {**WHOLE, "zero_regather": "step"},
    {**WHOLE, "recompute": "selective"},
    {**WHOLE, "schedule": "zb_h1", "tie_word_embeddings": True},
    {**WHOLE, "schedule": "zb_v", "virtual_stages": 2, "recompute": "full"},
    {**WHOLE, "pipeline": 4, "schedule": "interleaved_1f1b", "virtual_stages": 2, "zero_stage": 2},
]
LAYOUTS = [*ZERO, *SCHEDULES, *RECOMPUTE, *({"tensor": 2, **choice} for choice in RECOMPUTE), *OTHERS]
# Not the ring: gloo's threads hold a message's buffers for a moment after its wait.
REAL = [ZERO[4], ZERO[6], ZERO[7], WHOLE, {**WHOLE, "schedule": "zb_h1", "recompute": "selective"},
        {"pipeline": 4, "schedule": "zb_v", "virtual_stages": 2}]  # fmt: skip


def name_of(layout: dict[str, Any]) -> str:
    return "-".join(f"{key}.{value}" for key, value in layout.items())


def world_of(layout: dict[str, Any]) -> int:
    return torch.Size(layout.get(axis, 1) for axis in ("tensor", "pipeline", "data", "context")).numel()


def config_of(layout: dict[str, Any], dtype: str) -> Config:
    parallel = dict(layout)
    tied = parallel.pop("tie_word_embeddings", False)
    micro = parallel.pop("micro_batch_size", 1)
    return config_from_tree(
        {
            "model": {
                "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 8,
                "num_key_value_heads": 4, "vocab_size": 999, "tie_word_embeddings": tied,
            },
            "parallel": parallel,
            "optim": {"lr": 0.01},
            "train": {
                "steps": 5, "global_batch_size": 8, "micro_batch_size": micro, "sequence_length": 256, "dtype": dtype,
                "run_dir": "unused",
            },
        }
    )  # fmt: skip


def form(config: Config, world: int, stage: int) -> Memory:
    resolved = resolve(config, world)
    return peak_memory(config, resolved, schedule_of(config, resolved, resolved.microbatches), stage)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_the_peak_is_the_forms_on_the_first_and_the_last_stage(layout, dtype):
    config, world = config_of(layout, dtype), world_of(layout)
    for rank in sorted({layout.get("tensor", 1) - 1, world - 1}):
        step = step_on_paper(config, world, rank)
        expected = form(config, world, step.stage)
        assert step.peak == pytest.approx(expected.total, rel=0.02)
        assert step.at_peak["state"] == pytest.approx(expected.state, rel=0.005)


def real_step(layout: dict[str, Any]) -> tuple[int, int]:
    """(stage, peak bytes) of a real step on this rank."""
    config, world = config_of(layout, "float32"), world_of(layout)
    resolved = resolve(config, world)
    sizes = (layout.get(axis, 1) for axis in ("pipeline", "data", "context", "tensor"))
    tracker = StorageTracker(torch.device("cpu"))
    with tracker:
        placement = schedule_of(config, resolved, resolved.microbatches).placement
        trainer = Trainer(config, resolved, build_mesh(MeshShape(*sizes), torch.device("cpu"), placement))
        samples = torch.zeros(resolved.local_batch_size, config.train.sequence_length + 1, dtype=torch.int64)
        trainer.train_step(samples, learning_rate=1e-3)
    return trainer.mesh.stage, tracker.peak


@pytest.mark.parametrize("layout", REAL, ids=name_of)
def test_the_storages_of_real_ranks_reach_the_forms_peak(ranks, layout):
    config, world = config_of(layout, "float32"), world_of(layout)
    for stage, peak in ranks.run(real_step, world, layout)[layout.get("tensor", 1) - 1 :: layout.get("tensor", 1)]:
        assert peak == pytest.approx(form(config, world, stage).total, rel=0.02)


def test_a_tape_remembers_its_fullest_moment():
    tape = Tape()
    tape.take(5)
    tape.take_gradient(3)
    tape.give(5)
    tape.take(4)
    assert (tape.live, tape.peak, tape.gradients_at_peak) == (7, 8, 3)
