"""What of a training state is saved, as named blocks of flat buffers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from megatron_lite.checkpoint.index import KINDS
from megatron_lite.config import Config
from megatron_lite.mesh import Mesh
from megatron_lite.optim.adamw import AdamW
from megatron_lite.optim.ema import MovingAverage
from megatron_lite.parallel.layout import Box
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.zero import Shards

Flats = Mapping[str, Tensor]  # kind -> flat shard
State = Sequence[tuple[Shards, Flats]]


class Trainable(Protocol):
    """What is saved and restored; training.step.Trainer is one."""

    config: Config
    mesh: Mesh
    stage: Stage
    optimizer: AdamW
    average: MovingAverage | None


def training_state(trainer: Trainable) -> State:
    """Each of the stage's shards with its weights, and where it is trained with both moments and its average, if there
    is one.
    """
    optimizer, average = trainer.optimizer, trainer.average
    beside: dict[int, list[Tensor]] = defaultdict(list)
    for shards, moments in zip(optimizer.shards, optimizer.moments, strict=True):
        beside[id(shards)] += moments
    for shards, value in zip(average.shards, average.values, strict=True) if average is not None else ():
        beside[id(shards)].append(value)
    return [
        (shards, dict(zip(KINDS, (shards.values, *beside[id(shards)]), strict=False)))
        for shards in trainer.stage.shards
    ]


def trained_only(state: State) -> State:
    return [(shards, flats) for shards, flats in state if shards.trained]


def weights_only(stage: Stage) -> State:
    return [(shards, {"master": shards.values}) for shards in stage.shards]


def owned_boxes(state: State, mesh: Mesh) -> Iterator[tuple[Box, Flats]]:
    """The boxes that this rank saves, each element of the model on exactly one rank."""
    for shards, flats in state:
        for local, box in shards.layout.boxes(shards.sharding.rank):
            if shards.owned_here(local, mesh.tensor):
                yield box, flats


def all_boxes(state: State) -> Iterator[tuple[Box, Flats]]:
    """The boxes that this rank holds, replicas and tied copies too."""
    for shards, flats in state:
        for _, box in shards.layout.boxes(shards.sharding.rank):
            yield box, flats


def names_of(state: State) -> list[str]:
    """Of the parameters that this rank's shards have rows of, whichever rank holds them."""
    packs = (packed for shards, _ in state for local in shards.layout.locals for packed in local.packs)
    return list(dict.fromkeys(packed.logical.name for packed in packs))


def view(flat: Tensor, box: Box) -> Tensor:
    """The box's place in a flat shard."""
    return flat[box.offset : box.offset + box.size].view(box.shape)


def padding(shards: Shards) -> Iterator[slice]:
    """What of a flat shard lies in no box."""
    end = 0
    for _, box in sorted(shards.layout.boxes(shards.sharding.rank), key=lambda pair: pair[1].offset):
        yield slice(end, box.offset)
        end = box.offset + box.size
    yield slice(end, shards.layout.size)
