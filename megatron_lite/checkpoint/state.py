"""What of a training state is saved, as named blocks of flat buffers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from megatron_lite.checkpoint.index import KINDS
from megatron_lite.config import Config
from megatron_lite.mesh import Mesh
from megatron_lite.optim.adamw import AdamW
from megatron_lite.parallel.layout import Box
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.zero import Shards

Flats = Mapping[str, Tensor]  # kind -> flat shard


class Trainable(Protocol):
    """What is saved and restored; training.step.Trainer is one."""

    config: Config
    mesh: Mesh
    stage: Stage
    optimizer: AdamW


def training_state(trainer: Trainable) -> list[tuple[Shards, Flats]]:
    """Each of the stage's shards with its master weights and both moments."""
    return [
        (shards, dict(zip(KINDS, (shards.values, *moments), strict=True)))
        for shards, moments in zip(trainer.optimizer.shards, trainer.optimizer.moments, strict=True)
    ]


def weights_only(stage: Stage) -> list[tuple[Shards, Flats]]:
    return [(shards, {"master": shards.values}) for shards in stage.shards]


def owned_boxes(state: Sequence[tuple[Shards, Flats]], mesh: Mesh) -> Iterator[tuple[Box, Flats]]:
    """The boxes that this rank saves, each element of the model on exactly one rank."""
    for shards, flats in state:
        for local, box in shards.layout.boxes(shards.sharding.rank):
            if shards.owned_here(local, mesh.tensor):
                yield box, flats


def all_boxes(state: Sequence[tuple[Shards, Flats]]) -> Iterator[tuple[Box, Flats]]:
    """The boxes that this rank holds, replicas and tied copies too."""
    for shards, flats in state:
        for _, box in shards.layout.boxes(shards.sharding.rank):
            yield box, flats


def view(flat: Tensor, box: Box) -> Tensor:
    """The box's place in a flat shard."""
    return flat[box.offset : box.offset + box.size].view(box.shape)
