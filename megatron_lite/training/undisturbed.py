"""What looks at a model between two of its steps leaves no trace: what follows has the same bits as without it.

Weights, moments and gradients are not written, data are read by number, and random numbers go on where they were.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from megatron_lite.model.model import Model


@contextmanager
def undisturbed(model: Model, step: int, phase: str) -> Iterator[None]:
    """Afterwards random numbers go on where they were. `phase` is the transcript's, and stands in complaints.

    Raises RuntimeError where weights are still held afterwards.
    """
    if model.recorder is not None:
        model.recorder.phase = phase
    with _same_random_numbers(model.mesh.device):
        yield
    if kept := next((shards.name for shards in model.stage.shards if shards.held), None):
        raise RuntimeError(f"weights of {kept} are still held after step {step}'s {phase}")


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
