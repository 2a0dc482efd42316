"""A data set as an endless row of samples of sequence_length + 1 tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_lite.data import _helpers
from megatron_lite.data.cache import cached
from megatron_lite.data.indexed import IndexedDataset
from megatron_lite.errors import DataError

Order = Callable[[int, int, int], int]  # (epoch, position in the epoch, samples an epoch) -> sample in file order


class Samples(Protocol):
    """What a loader reads: `[i]` is int64 [sequence_length + 1] for any i >= 0, `len()` the samples of one epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


def file_order(epoch: int, position: int, samples: int) -> int:
    """Every epoch as the samples stand in the file."""
    return position


@dataclass(frozen=True)
class KeyedOrder:
    """A permutation of its own for every (seed, stream, epoch); `stream` tells the data sets of a blend apart."""

    seed: int
    stream: int = 0

    def __call__(self, epoch: int, position: int, samples: int) -> int:
        return int(_helpers.permute(position, position + 1, samples, self.seed, self.stream, epoch)[0])


class GPTDataset:
    """Samples of one data set: its sequences laid end to end in file order, cut every sequence_length tokens.

    Sample i holds tokens i * sequence_length up to and including (i + 1) * sequence_length, so its last token is the
    first of sample i + 1 and every token but the first is predicted once an epoch. What stays after the last whole
    sample is dropped: `dropped_tokens`.

    Args:
        source: the tokens.
        sequences: the range of its sequences to use.
        order: which sample stands where in an epoch.
        cache_dir: where the sample index is kept between runs; None builds it anew.
    """

    def __init__(
        self,
        source: IndexedDataset,
        sequence_length: int,
        order: Order,
        sequences: range | None = None,
        cache_dir: Path | None = None,
    ):
        self.source, self.sequence_length, self.order = source, sequence_length, order
        self.sequences = range(source.sequence_count) if sequences is None else sequences
        first, last = self.sequences.start, self.sequences.stop
        self.token_count = int(source.lengths[first:last].sum(dtype=np.int64))
        if self.token_count <= sequence_length:
            raise DataError(
                f"{source.prefix}: sequences {first} to {last} hold {self.token_count} tokens; "
                f"one sample of sequence_length {sequence_length} takes {sequence_length + 1}"
            )
        # int64 [samples, 2]: sequence, tokens into it
        self.index = cached(
            cache_dir,
            "samples",
            source,
            {"first": first, "last": last, "sequence_length": sequence_length},
            lambda: _helpers.build_sample_index(source.lengths, first, last, sequence_length),
        )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dropped_tokens(self) -> int:
        """Tokens of an epoch that are in no sample."""
        return self.token_count - len(self) * self.sequence_length - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """int64 [sequence_length + 1]; `index` counts on over the epochs. Raises IndexError below 0."""
        if index < 0:
            raise IndexError(f"sample {index}; samples count from 0")
        epoch, position = divmod(index, len(self))
        sequence, offset = self.index[self.order(epoch, position, len(self))]
        return _helpers.gather_tokens(
            self.source.tokens,
            self.source.lengths,
            self.source.pointers,
            int(sequence),
            self.sequences.stop,
            int(offset),
            self.sequence_length + 1,
        )
