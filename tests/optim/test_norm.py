"""The gradient norm counts each element once, in long parts of the shards, by a table made before the first step."""

from dataclasses import replace

import pytest
import torch
from support.layouts import Layout, build_trainer

from megatron_lite.config import Config, resolve
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model
from megatron_lite.optim.norm import GradientNorm
from megatron_lite.planning.paper import META, choice_on_paper, fake_world
from megatron_lite.training.step import Trainer

LAYOUT = Layout(layers=2)


def config_of(layout: Layout, backend: str) -> Config:
    config = layout.config()
    return config.model_copy(update={"optim": config.optim.model_copy(update={"backend": backend})})


def counted_on(rank: int, layout: Layout) -> tuple[Trainer, list[int]]:
    """A rank on paper, and how many elements each of its counted parts has."""
    config = layout.config()
    with fake_world(rank, layout.world):
        resolved = resolve(config, layout.world)
        mesh = build_mesh(MeshShape.of(resolved), META)
        trainer = Trainer(Model(config, resolved, mesh, choice=choice_on_paper(config)))
    return trainer, [part.numel() for part in trainer.norm.counted]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 3e-7)])
def test_the_norm_of_every_step_is_that_of_the_gradients_then(backend, dtype, tolerance):
    layout = replace(LAYOUT, dtype=dtype)
    trainer = build_trainer(layout, config=config_of(layout, backend))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for shards in trainer.stage.shards:
            shards.gradient.normal_(generator=generator)
        exact = sum(shards.gradient.double().square().sum() for shards in trainer.stage.shards)
        assert float(trainer.norm.local_square_sum()) == pytest.approx(float(exact), rel=tolerance)


def test_the_table_is_made_once_for_all_steps():
    trainer = build_trainer(LAYOUT)
    made = []
    kernels = replace(trainer.norm.kernels, table_of=lambda shards: made.append(shards))
    norm = GradientNorm.of(trainer.stage.shards, trainer.mesh, kernels)
    for _ in range(3):
        norm.local_square_sum()
    assert len(made) == 1


def test_the_first_tensor_rank_counts_whole_buffers_and_the_second_all_but_the_norms():
    """One part a shard, from where its buffer begins, which is where a GPU reads fastest."""
    layout = replace(LAYOUT, tensor=2)
    trainer, counted = counted_on(0, layout)
    assert counted == [shards.layout.size for shards in trainer.stage.shards]
    trainer, counted = counted_on(1, layout)
    hidden, norms = trainer.config.model.hidden_size, {"block.0": 2, "block.1": 2, "embedding": 0, "head": 1}
    assert counted == [s.layout.size - norms[s.name] * hidden for s in trainer.stage.shards]
    assert all(part.storage_offset() == 0 for part in trainer.norm.counted)


def test_a_replica_of_all_shards_counts_nothing():
    trainer, counted = counted_on(1, replace(LAYOUT, data=2, zero_stage=0))
    assert counted == []
    total = trainer.norm.local_square_sum()
    assert total.dtype == torch.float64 and total.shape == ()
