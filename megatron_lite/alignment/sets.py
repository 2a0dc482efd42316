"""Sets of samples as the rows that a run takes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from megatron_lite.alignment.batches import Sample
from megatron_lite.alignment.columns import MARGIN, REFERENCE
from megatron_lite.alignment.packing import Epochs, Fill, fill_of
from megatron_lite.alignment.store import Store
from megatron_lite.config import AlignedConfig, batch_size_after
from megatron_lite.data.blend import Blend
from megatron_lite.errors import DataError


@dataclass(frozen=True)
class SampleSet:
    """A store with its name in metrics and its weight beside other sets. `reference` are the reference's
    log-probabilities of each pair's answers, float64 [samples, 2], where an objective wants them.

    Raises DataError for a store without a sample.
    """

    name: str
    weight: float
    store: Store
    reference: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.store) == 0:
            raise DataError(f"set {self.name} has no sample: each of its rows was left out, or its file has none")

    def sample(self, number: int, key: int = 0) -> Sample:
        """`key` is of the set and the step."""
        segments, columns = self.store.sample(number), {}
        if MARGIN.name in self.store.columns:
            columns[MARGIN.name] = np.full(len(segments), self.store.columns[MARGIN.name][number])
        if self.reference is not None:
            columns[REFERENCE.name] = self.reference[number]
        return Sample(segments, number, key, columns)


def capacity_of(config: AlignedConfig) -> int | None:
    """Tokens of a row that is packed; None: a row for every sample."""
    return config.train.sequence_length if config.data.packing else None


class RunRows:
    """The rows of a run, 0, 1, 2, ... without an end: sets take turns by their weights, each in epochs of its own."""

    def __init__(self, sets: Sequence[SampleSet], config: AlignedConfig):
        self.sets, self.blend = tuple(sets), Blend.of([one.weight for one in sets])
        self.capacity, self.micro_batch_size = capacity_of(config), config.train.micro_batch_size
        self.epochs = [
            Epochs(one.store.lengths, self.capacity, config.data.seed, stream) for stream, one in enumerate(sets)
        ]

    def read(self, first: int, count: int) -> list[tuple[int, list[int]]]:
        """(set, samples of it) of each row from `first` on."""
        which, numbers = self.blend.sources(first, count)
        return [(one, self.epochs[one].row(row)) for one, row in zip(which.tolist(), numbers.tolist(), strict=True)]

    def tokens(self, rows: int) -> int:
        """In the first so many rows, padding not counted."""
        given = self.blend.given(rows).tolist()
        return sum(epochs.tokens(count) for epochs, count in zip(self.epochs, given, strict=True))

    def fills(self) -> dict[str, Fill]:
        """By name of a set, in its first epoch."""
        capacity, together = self.capacity, self.micro_batch_size
        return {
            one.name: fill_of(epochs.epoch(0), one.store.lengths, capacity, together)
            for one, epochs in zip(self.sets, self.epochs, strict=True)
        }

    def covering(self, epochs: float) -> int:
        """The fewest rows among which every set was seen so many times, those of smaller weight the last."""
        # As the number is written: 1.1 epochs of 20 rows are 22, not the next above a nearest binary fraction.
        return self.blend.reaching([math.ceil(Fraction(str(epochs)) * len(one)) for one in self.epochs])


def steps_of(sets: Sequence[SampleSet], epochs: float, config: AlignedConfig) -> int:
    """Steps in which every set is seen `epochs` times: the last is filled up with the rows that follow, and a set whose
    weight is more than its share of rows goes on from its beginning.
    """
    rows = RunRows(sets, config).covering(epochs)
    consumed = steps = 0
    while consumed < rows:
        consumed, steps = consumed + batch_size_after(consumed, config.train), steps + 1
    return steps
