"""The optimizer on each implementation of its update: the same weights, and copies of them for the products."""

from dataclasses import replace

import pytest
import torch
from megatron_lite.kernels.choice import optimizer_kernels_of
from support.kernels.stand_ins import stand_in_for_apex_adam
from support.layouts import Layout, build_trainer

from megatron_lite.training.step import Trainer

RATE = 0.01
RUNS = [(backend, dtype) for backend in ("torch", "triton", "apex") for dtype in ("float64", "float32", "bfloat16")]
RUNS.remove(("apex", "float64"))


def layout_of(dtype: str) -> Layout:
    return Layout(layers=2, dtype=dtype)


def updated(backend: str, dtype: str, clip: float | None) -> Trainer:
    """After three updates with random gradients."""
    trainer = build_trainer(layout_of(dtype))
    # Put in by hand, since a configuration that asks for apex on a CPU is refused.
    trainer.optimizer.kernels = optimizer_kernels_of(replace(trainer.model.choice, optimizer=backend))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for shards in trainer.stage.shards:
            shards.gradient.normal_(generator=generator)
        trainer.optimizer.step(RATE, None if clip is None else torch.tensor(clip, dtype=torch.float64))
    return trainer


def by_hand(trainer: Trainer, clip: float) -> list[torch.Tensor]:
    """The masters of a fresh `trainer` after the same updates, by torch.optim.AdamW in float64."""
    generator, groups, parameters = torch.Generator().manual_seed(0), [], []
    optim = trainer.config.optim
    for shards in trainer.stage.shards:
        decayed = shards.layout.decayed
        for part, decay in ((shards.master[:decayed], optim.weight_decay), (shards.master[decayed:], 0.0)):
            parameters.append(torch.nn.Parameter(part.double().clone()))
            groups.append({"params": [parameters[-1]], "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=optim.betas, eps=optim.eps)
    for _ in range(3):
        for number, shards in enumerate(trainer.stage.shards):
            gradient = torch.empty_like(shards.gradient).normal_(generator=generator).double() * clip
            decayed = shards.layout.decayed
            parameters[2 * number].grad, parameters[2 * number + 1].grad = gradient[:decayed], gradient[decayed:]
        optimizer.step()
    return [torch.cat([a.detach(), b.detach()]) for a, b in zip(parameters[::2], parameters[1::2], strict=True)]


@pytest.mark.parametrize("clip", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_three_updates_are_torchs_optimizers_in_float64(monkeypatch, backend, dtype, clip):
    stand_in_for_apex_adam(monkeypatch)
    expected = by_hand(build_trainer(layout_of(dtype)), clip or 1.0)
    trainer = updated(backend, dtype, clip)
    tolerance = 1e-13 if dtype == "float64" else 1e-6
    assert trainer.optimizer.updates == 3
    for shards, master in zip(trainer.stage.shards, expected, strict=True):
        assert (shards.master - master).abs().max() <= tolerance
        assert torch.equal(shards.compute, shards.master.to(shards.compute.dtype))
        assert (shards.compute is shards.master) == (dtype != "bfloat16")
