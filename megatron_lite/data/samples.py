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

# (epoch, first position in it, one past the last, samples an epoch) -> int64 [positions] of samples in file order
Order = Callable[[int, int, int, int], np.ndarray]
# (one sample, its epoch, its number in file order) -> what is read instead, of the same length
Transform = Callable[[np.ndarray, int, int], np.ndarray]


class Samples(Protocol):
    """What a loader reads: samples 0, 1, 2, ... without an end; `len()` is how many make an epoch."""

    def __len__(self) -> int: ...

    def read(self, first: int, count: int) -> np.ndarray:
        """int64 [count, sequence_length + 1], for any first >= 0. Raises IndexError below 0."""
        ...


def file_order(epoch: int, begin: int, end: int, samples: int) -> np.ndarray:
    """Every epoch as the samples stand in the file."""
    return np.arange(begin, end)


@dataclass(frozen=True)
class KeyedOrder:
    """A permutation of its own for every (seed, stream, epoch); `stream` tells the data sets of a blend apart."""

    seed: int
    stream: int = 0

    def __call__(self, epoch: int, begin: int, end: int, samples: int) -> np.ndarray:
        return _helpers.permute(begin, end, samples, self.seed, self.stream, epoch)


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
        transform: what is done to each sample when it is read; None: nothing.
    """

    def __init__(
        self,
        source: IndexedDataset,
        sequence_length: int,
        order: Order,
        sequences: range | None = None,
        cache_dir: Path | None = None,
        transform: Transform | None = None,
    ):
        self.source, self.sequence_length, self.order, self.transform = source, sequence_length, order, transform
        self.sequences = range(source.sequence_count) if sequences is None else sequences
        self.token_count = count_tokens(source, self.sequences, cache_dir)
        if self.token_count <= sequence_length:
            raise DataError(
                f"{source.prefix}: sequences {self.sequences.start} to {self.sequences.stop} hold {self.token_count} "
                f"tokens; one sample of sequence_length {sequence_length} takes {sequence_length + 1}"
            )
        first, last = self.sequences.start, self.sequences.stop
        # int64 [samples, 2]: sequence, tokens into it
        self.index = cached(
            cache_dir,
            "samples",
            source.fingerprint,
            {"first": first, "last": last, "sequence_length": sequence_length},
            last - first,
            lambda: _helpers.build_sample_index(source.lengths, first, last, sequence_length),
        )
        self._reader = _helpers.SampleReader(
            source.tokens, source.lengths, source.pointers, self.index, last, sequence_length
        )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dropped_tokens(self) -> int:
        """Tokens of an epoch that are in no sample."""
        return self.token_count - len(self) * self.sequence_length - 1

    def read(self, first: int, count: int) -> np.ndarray:
        """int64 [count, sequence_length + 1]; samples count on over the epochs. Raises IndexError below 0."""
        pieces = stretches(first, count, len(self.index))
        if len(pieces) == 1:
            return self._read(*pieces[0])
        return np.concatenate([self._read(*piece) for piece in pieces])

    def _read(self, epoch: int, begin: int, end: int) -> np.ndarray:
        samples = self.order(epoch, begin, end, len(self.index))
        rows = self._reader.read(samples)
        if self.transform is not None:
            for row, sample in zip(rows, samples.tolist(), strict=True):
                row[:] = self.transform(row, epoch, sample)
        return rows


def stretches(first: int, count: int, length: int) -> list[tuple[int, int, int]]:
    """(row, begin, end) of the pieces that [first, first + count) falls into, in rows of `length`.

    Raises IndexError for a negative `first`.
    """
    if first < 0:
        raise IndexError(f"sample {first}; samples count from 0")
    row, begin = divmod(first, length)
    pieces = []
    while begin + count > length:
        pieces.append((row, begin, length))
        count -= length - begin
        row, begin = row + 1, 0
    pieces.append((row, begin, begin + count))
    return pieces


def count_tokens(source: IndexedDataset, sequences: range, cache_dir: Path | None) -> int:
    """How many tokens a range of sequences holds."""
    first, last = sequences.start, sequences.stop
    found = cached(
        cache_dir,
        "token_count",
        source.fingerprint,
        {"first": first, "last": last},
        last - first,
        lambda: np.array([_helpers.count_tokens(source.lengths, first, last)], np.int64),
    )
    return int(found[0])
