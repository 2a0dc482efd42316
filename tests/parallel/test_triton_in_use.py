"""Training with our kernels, in Triton's interpreter, is training with PyTorch's: to the dtype's rounding."""

from dataclasses import replace

import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches

LAYOUT = Layout(tensor=2, pipeline=2, data=2, steps=2)
CHOICES = {
    "cube": LAYOUT,
    "split backward, full recompute, loss in chunks": replace(
        LAYOUT, schedule="zb_h1", recompute="full", tied=True, loss_chunk=3
    ),
    "ring, documents": Layout(context=2, tensor=2, documents=True, steps=2),
}
# Of the loss and the gradient norm, relative: each dtype's rounding, with room for the sums behind them.
TOLERANCE = {"float64": 1e-11, "float32": 2e-6, "bfloat16": 2**-5}
RUNS = [
    pytest.param(name, dtype, marks=() if (name, dtype) == ("cube", "float32") else pytest.mark.nightly)
    for name in CHOICES
    for dtype in TOLERANCE
]


def train(layout: Layout, backend: str) -> list[tuple[float, float]]:
    config = layout.config()
    kernels = config.kernels.model_copy(update={"backend": backend})
    trainer = build_trainer(layout, config=config.model_copy(update={"kernels": kernels}))
    assert (trainer.model.choice.backend, trainer.model.choice.optimizer) == (backend, backend)
    results = [trainer.train_step(my_batches(trainer, step), 0.01) for step in range(1, layout.steps + 1)]
    return [(result.loss.item(), result.grad_norm.item()) for result in results]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_losses_and_norms_are_torchs(ranks, name, dtype):
    layout = replace(CHOICES[name], dtype=dtype)
    expected = ranks.run(train, layout.world, layout, "torch", timeout=300)
    found = ranks.run(train, layout.world, layout, "triton", timeout=300)
    assert found[0] == found[-1]
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE[dtype])
    assert torch.tensor(found[0]).isfinite().all()
