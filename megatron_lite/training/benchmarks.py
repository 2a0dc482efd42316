"""Benchmarks between two steps of a run, by a function that is handed down: training knows nothing of what it asks.

It sees the model in training between two steps, and what follows has the same bits as without it: weights, moments and
gradients are not written, data are read by number, and random numbers go on where they were.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from megatron_lite.model.model import Model

# (the model in training, the step just done) -> numbers by name, TASK/METRIC. Every rank calls it; the first one's
# numbers are written. It may hold the weights while it runs, and changes none.
Evaluate = Callable[[Model, int], Mapping[str, float]]

PREFIX = "evaluation/"  # of the numbers' names in metrics.jsonl


def numbers_after(step: int, model: Model, evaluate: Evaluate) -> dict[str, float]:
    """What `evaluate` finds, by names in metrics.jsonl. Raises RuntimeError where it leaves weights held."""
    if model.recorder is not None:
        model.recorder.phase = "evaluate"
    with _same_random_numbers(model.mesh.device):
        found = evaluate(model, step)
    if kept := next((shards.name for shards in model.stage.shards if shards.held), None):
        raise RuntimeError(f"weights of {kept} are still held after the evaluation of step {step}")
    return {PREFIX + name: value for name, value in found.items()}


def shown(numbers: Mapping[str, float]) -> str:
    """In a line, without standard errors."""
    some = {name.removeprefix(PREFIX): value for name, value in numbers.items() if "_stderr" not in name}
    return ", ".join(f"{name} {value:.4g}" for name, value in some.items()) or "no numbers"


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Afterwards every generator that a library may have drawn from or seeded is as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]  # the CPU's own is kept in any case
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
