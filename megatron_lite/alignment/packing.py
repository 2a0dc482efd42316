"""Samples of unequal lengths laid into rows of one length, none cut; and the rows of every epoch.

Best fit decreasing: the longest sample first, each into the row that has the least room left of those where it fits,
into a new one where it fits nowhere. That takes at most 11/9 of the fewest rows possible, and 4 (Johnson, Demers,
Ullman, Garey, Graham 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms").
"""

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megatron_lite.data.samples import KeyedOrder


@dataclass(frozen=True)
class Rows:
    """Row i holds samples[begins[i] : begins[i + 1]], one or more. samples int64 [samples], begins int64 [rows + 1]."""

    samples: np.ndarray
    begins: np.ndarray

    def __len__(self) -> int:
        return len(self.begins) - 1

    def row(self, number: int) -> list[int]:
        return self.samples[self.begins[number] : self.begins[number + 1]].tolist()

    def tokens(self, lengths: np.ndarray) -> np.ndarray:
        """int64 [rows], of samples of such lengths."""
        return np.add.reduceat(lengths[self.samples], self.begins[:-1]) if len(self) else np.empty(0, np.int64)

    def reordered(self, order: np.ndarray) -> "Rows":
        """Row order[i] as row i."""
        counts = np.diff(self.begins)[order]
        begins = np.concatenate(([0], np.cumsum(counts)))
        shifts = np.repeat(self.begins[:-1][order] - begins[:-1], counts)
        return Rows(self.samples[shifts + np.arange(len(self.samples))], begins)

    def in_file_order(self) -> "Rows":
        """By the first of each row's samples in the file."""
        return self.reordered(np.argsort(np.minimum.reduceat(self.samples, self.begins[:-1])))


@dataclass(frozen=True)
class Fill:
    """How rows are filled. `padding` is the share of positions that hold no token."""

    rows: int
    samples: int
    tokens: int
    padding: float

    def __str__(self) -> str:
        return (
            f"{self.samples:,} samples in {self.rows:,} rows, {self.samples / self.rows:.2f} a row; "
            f"{self.padding:.1%} of positions are padding"
        )


def fill_of(rows: Rows, lengths: np.ndarray, capacity: int | None, together: int) -> Fill:
    """Of rows that are as long as `capacity` or, with None, as the longest of so many that run together."""
    tokens = rows.tokens(lengths)
    if capacity is None:
        firsts = np.arange(0, len(rows), together)
        positions = int((np.maximum.reduceat(tokens, firsts) * np.diff([*firsts, len(rows)])).sum())
    else:
        positions = capacity * len(rows)
    return Fill(len(rows), len(rows.samples), int(tokens.sum()), 1 - int(tokens.sum()) / positions)


def one_each(samples: int) -> Rows:
    """A row for every sample."""
    return Rows(np.arange(samples), np.arange(samples + 1))


def best_fit(lengths: np.ndarray, capacity: int) -> Rows:
    """Samples of int64 [samples] lengths in rows of `capacity`, the longest of a row first, of equals the earlier.

    Samples of one length, and rows of one room, need not be told apart, so they are placed many at a time: it takes the
    time of sorting, and about distinct lengths x log2(capacity) turns at most. Raises ValueError for a sample that is
    longer than a row, or empty.
    """
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} has {lengths[wrong[0]]} tokens: must be 1 to {capacity}, to lie in a row")
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), np.int64)  # of each sample in that order
    kinds, counts = np.unique(lengths, return_counts=True)
    open_rows, placed = _OpenRows(capacity), 0
    for length, count in zip(kinds[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = placed + count
        while placed < end:
            room, rows = open_rows.tightest(length, end - placed)
            each = min(room // length, end - placed)  # the row stays the tightest until it has no room for another
            taken = rows[: (end - placed) // each]
            row_of[placed : placed + each * len(taken)] = np.repeat(taken, each)
            placed += each * len(taken)
            open_rows.put(room - each * length, taken)
            open_rows.put(room, rows[len(taken) :])
    by_row = np.argsort(row_of, kind="stable")
    return Rows(order[by_row], np.concatenate(([0], np.cumsum(np.bincount(row_of)))).astype(np.int64))


class _OpenRows:
    """Rows by the room that they have left, in blocks of their numbers."""

    def __init__(self, capacity: int):
        self.capacity, self.begun = capacity, 0
        self.rooms: list[int] = []  # those of some row, ascending
        self.blocks: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def tightest(self, length: int, samples: int) -> tuple[int, np.ndarray]:
        """(room, some rows that have it): the least in which a length fits; where it fits nowhere new rows for all."""
        place = bisect_left(self.rooms, length)
        if place == len(self.rooms):
            first = self.begun
            self.begun += -(-samples // (self.capacity // length))
            return self.capacity, np.arange(first, self.begun)
        room = self.rooms[place]
        rows = self.blocks[room].pop()
        if not self.blocks[room]:
            del self.rooms[place]
        return room, rows

    def put(self, room: int, rows: np.ndarray) -> None:
        if room == 0 or len(rows) == 0:
            return
        if not self.blocks[room]:
            insort(self.rooms, room)
        self.blocks[room].append(rows)


class Epochs:
    """The rows of a set, epoch after epoch: in each all samples once.

    Which lengths share a row is the same in every epoch; which of the samples of such a length, and in which order rows
    come, is drawn by (seed, stream, epoch). So every epoch has equally many rows, and row k of a run is row k % rows of
    epoch k // rows, whatever came before.
    """

    def __init__(self, lengths: np.ndarray, capacity: int | None, seed: int, stream: int):
        """lengths int64 [samples]; rows of `capacity` tokens, or None: a row for every sample. `stream` tells sets of
        one seed apart.
        """
        self.lengths = lengths
        # The samples of a place are those of its length; places go from the longest to the shortest.
        self.places = one_each(len(lengths)) if capacity is None else best_fit(-np.sort(-lengths), capacity)
        self._sample_order, self._row_order = KeyedOrder(seed, 2 * stream), KeyedOrder(seed, 2 * stream + 1)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a step may lie in two
        self._tokens_before = lru_cache(maxsize=2)(self._add_up)

    def __len__(self) -> int:
        """Rows an epoch."""
        return len(self.places)

    def row(self, number: int) -> list[int]:
        """The samples of a row, for any number from 0."""
        epoch, place = divmod(number, len(self))
        return self.epoch(epoch).row(place)

    def tokens(self, rows: int) -> int:
        """In so many rows from the first, padding not counted."""
        epoch, place = divmod(rows, len(self))
        return epoch * int(self.lengths.sum()) + int(self._tokens_before(epoch)[place])

    def _epoch(self, epoch: int) -> Rows:
        samples, rows = len(self.lengths), len(self)
        shuffled = self._sample_order(epoch, 0, samples, samples)
        by_length = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
        return Rows(by_length[self.places.samples], self.places.begins).reordered(self._row_order(epoch, 0, rows, rows))

    def _add_up(self, epoch: int) -> np.ndarray:
        """int64 [rows + 1]: tokens before each row of an epoch."""
        return np.concatenate(([0], np.cumsum(self.epoch(epoch).tokens(self.lengths))))
