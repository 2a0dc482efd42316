"""What a pipeline rank runs: its share of the model as units in order."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

from torch import Tensor

from megatron_lite.config import Recompute
from megatron_lite.parallel.zero import Shards, TrainedShards


@dataclass(frozen=True)
class End:
    """What the model's last unit gives: where backward begins and with which gradient (None: a scalar's, 1), and what
    it made of the microbatch, for whoever runs the stage.
    """

    root: Tensor
    gradient: Tensor | None
    made: Any


class Unit(Protocol):
    """What ZeRO gathers, recomputes and walks over at once; the model says what they are.

    A unit calls for its weights' tensors while it runs, forward and backward, and adds their gradients itself.
    """

    @property
    def shards(self) -> tuple[Shards, ...]: ...

    @property
    def recompute(self) -> Recompute: ...

    def forward(self, x: Tensor, batch: Any) -> Tensor | End:
        """`batch` is the microbatch as the model knows it; the executor hands it on. The model's last unit ends it."""


@dataclass(frozen=True)
class Stage:
    """A pipeline rank's share of the model: the units of each chunk in order, and the weights behind them by unit's
    name. Several stages may stand around the same weights.
    """

    chunks: tuple[tuple[Unit, ...], ...]
    weights: Mapping[str, tuple[Shards, ...]]

    @property
    def units(self) -> tuple[Unit, ...]:
        """Of all chunks."""
        return tuple(unit for chunk in self.chunks for unit in chunk)

    @property
    def shards(self) -> tuple[Shards, ...]:
        """The distinct ones: a tied head has the embedding's, too."""
        return tuple(dict.fromkeys(shards for unit in self.weights.values() for shards in unit))

    @property
    def trained(self) -> tuple[TrainedShards, ...]:
        """Those shards that are not frozen."""
        return tuple(shards for shards in self.shards if isinstance(shards, TrainedShards))


@contextmanager
def held(stage: Stage) -> Iterator[None]:
    """Within, weights are gathered once and stay, at any ZeRO stage: for many forward passes, as rollouts take. They
    must not change meanwhile. What already was held stays so.
    """
    mine = hold(stage)
    try:
        yield
    finally:
        for shards in mine:
            shards.unpin()


def hold(stage: Stage) -> list[Shards]:
    """Gather weights that will stay; returns those that were not held before."""
    mine = [shards for shards in stage.shards if not shards.pinned]
    for shards, following in zip_longest(mine, mine[1:]):
        if following is not None and not following.held:
            following.start_gather()  # one ahead: a unit's buffers are gone before the next but one's are made
        shards.wait_gather()
        shards.pin()
    return mine


def kinds_of(stage: Stage) -> list[Unit]:
    """The first unit of each kind: units of one class and one choice of recomputation of which the same weights are
    trained run the same operations.
    """
    first: dict[tuple[type, Recompute, frozenset[str]], Unit] = {}
    for unit in stage.units:
        trained = (weight for shards in unit.shards for weight in shards.weights if weight.trained)
        names = frozenset(weight.local.name for weight in trained)
        first.setdefault((type(unit), unit.recompute, names), unit)
    return list(first.values())
