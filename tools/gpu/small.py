"""A small model's losses and gradient norms, step by step, on any layout, from the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.mesh import Mesh, MeshShape, build_mesh
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.model.sequences import Sequences
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer

END_OF_DOCUMENT = 3
LEARNING_RATE = 3e-3

Losses = list[tuple[float, float]]  # (loss, gradient norm) of each step


@dataclass(frozen=True)
class Small:
    """A run. `parallel` and `kernels` are the configuration's sections of these names."""

    preset: str = "tiny"
    steps: int = 20
    length: int = 256
    sequences: int = 8  # of a step
    microbatch: int = 2
    dtype: str = "float32"
    documents: bool = False
    parallel: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Config:
        return config_from_tree(
            {
                "model": {"preset": self.preset},
                "parallel": {"zero_regather": "microbatch"} | self.parallel,
                "kernels": self.kernels,
                "data": {"document_mask": self.documents},
                "optim": {"lr": LEARNING_RATE, "warmup_steps": 4},
                "train": {
                    "steps": self.steps, "global_batch_size": self.sequences, "micro_batch_size": self.microbatch,
                    "sequence_length": self.length, "dtype": self.dtype, "run_dir": "unused",
                },
            }
        )  # fmt: skip

    def on_cpu(self) -> "Small":
        """The same on one process in float64 and plain PyTorch: what others are held against."""
        return replace(self, dtype="float64", parallel={}, kernels={"backend": "torch"})

    def tokens(self, step: int, vocabulary: int) -> torch.Tensor:
        """[sequences, length + 1], the same everywhere; a document ends every 17 tokens."""
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, vocabulary, (self.sequences, self.length + 1), generator=generator)
        tokens[:, ::17] = END_OF_DOCUMENT
        return tokens


def trainer_of(small: Small, world: int, make_mesh: Callable[..., Mesh]) -> Trainer:
    """`make_mesh(shape, placement)` gives the mesh. Connected and rehearsed, as a run's is before its first step."""
    config = small.config()
    resolved = resolve(config, world)
    shape = MeshShape.of(resolved)
    mesh = make_mesh(shape, schedule_of(config, resolved, resolved.microbatches).placement)
    trainer = Trainer(Model(config, resolved, mesh))
    trainer.rehearse()
    return trainer


def alone(small: Small, device: torch.device) -> Trainer:
    return trainer_of(small, 1, lambda shape, placement: build_mesh(shape, device, placement))


def batches_of(trainer: Trainer, small: Small, step: int) -> list[Sequences]:
    """This data rank's microbatches, on its device."""
    tokens = small.tokens(step, trainer.config.model.vocab_size)
    mine = tokens.chunk(trainer.resolved.data)[trainer.mesh.coordinate["data"]]
    return microbatches_of(mine.to(trainer.mesh.device), trainer.config, END_OF_DOCUMENT)


def train(trainer: Trainer, small: Small) -> Losses:
    found = []
    for step in range(small.steps):
        result = trainer.train_step(batches_of(trainer, small, step), LEARNING_RATE)
        found.append((result.loss.item(), result.grad_norm.item()))
    return found


def far(found: Losses, right: Losses) -> float:
    """The largest relative distance of any loss or norm."""
    pairs = [pair for ours, theirs in zip(found, right, strict=True) for pair in zip(ours, theirs, strict=True)]
    return max(abs(one - other) / abs(other) for one, other in pairs)
