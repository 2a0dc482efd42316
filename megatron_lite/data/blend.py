"""Several data sets mixed by weight, and by other weights later on."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from megatron_lite.data import _helpers
from megatron_lite.data.samples import Samples, stretches

BLOCK = 1 << 16  # samples whose sources are computed and kept at once


@dataclass(frozen=True)
class Blend:
    """Whose turn it is when several data sets are taken by weights, for ever: sample k of a data set with share w of
    them is due at time (k + 1/2) / w, and samples come as they are due, those of the first data set first on a tie.
    """

    shares: tuple[float, ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> "Blend":
        return cls(tuple(float(weight) / sum(weights) for weight in weights))

    def sources(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(data set int32 [count], sample of it int64 [count]) from `first` on."""
        return _helpers.blend(self.shares, first, first + count)

    def given(self, count: int) -> np.ndarray:
        """int64 [data sets]: how many samples each gave among the first `count`."""
        return _helpers.blend_counts(self.shares, count)

    def reaching(self, counts: Sequence[int]) -> int:
        """The least number of samples among which every data set gave `counts` of its own; of weight 0, none."""
        wanted = [count if share > 0 else 0 for count, share in zip(counts, self.shares, strict=True)]
        due = [count / share for count, share in zip(wanted, self.shares, strict=True) if count]
        most = range(int(max(due, default=0)) + len(wanted) + 1)
        return bisect_left(most, True, key=lambda n: bool((self.given(n) >= wanted).all()))


@dataclass(frozen=True)
class Phase:
    """From sample `begin` of the run on, data sets are taken by `weights`: one each, on any scale, none below 0."""

    begin: int
    weights: Sequence[float]


class BlendedDataset:
    """Samples of several data sets, each taken in proportion to its weight and in its own order.

    Within a phase they take turns as `Blend` says. So the phase's first n samples hold n w of a data set with share w,
    to within 1/2 + w * data sets / 2; a longer run begins with the samples of a shorter one, and any place is entered
    without walking what lies before it.
    """

    def __init__(self, datasets: Sequence[Samples], phases: Sequence[Phase]):
        """The first phase begins at 0. Raises ValueError for phases out of order or weights that are none."""
        begins = [phase.begin for phase in phases]
        if not begins or begins[0] != 0 or any(begin >= later for begin, later in pairwise(begins)):
            raise ValueError(f"phases begin at samples {begins}; the first begins at 0, each at a later one")
        for phase in phases:
            weights = list(phase.weights)
            if len(datasets) != len(weights) or not datasets or min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{len(datasets)} data sets with weights {weights}; one each, none below 0, one above")
        self.datasets, self.begins = tuple(datasets), begins
        self.blends = [Blend.of(phase.weights) for phase in phases]
        # Samples that each data set gave before each phase, int64 [data sets].
        self._given = [np.zeros(len(datasets), np.int64)]
        for blend, (begin, end) in zip(self.blends, pairwise(begins), strict=False):
            self._given.append(self._given[-1] + blend.given(end - begin))
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def __len__(self) -> int:
        """Samples of one epoch of every data set together."""
        return sum(len(dataset) for dataset in self.datasets)

    def read(self, first: int, count: int) -> np.ndarray:
        """int64 [count, sequence_length + 1], for any first >= 0; a data set that runs out begins its next epoch."""
        return read_sources(self.datasets, *self.sources(first, count))

    def sources(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(data set int32 [count], sample of it int64 [count]) from `first` on. Raises IndexError below 0."""
        parts = []
        for phase, begin, end in self._by_phase(first, count):
            for block, start, stop in stretches(begin, end - begin, BLOCK):
                parts.append(tuple(part[start:stop] for part in self._block(phase, block)))
        datasets, samples = (np.concatenate(part) for part in zip(*parts, strict=True))
        return datasets, samples

    def _by_phase(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """(phase, begin, end) of the pieces of [first, first + count), counted from the phase's begin."""
        if first < 0:
            raise IndexError(f"sample {first}; samples count from 0")
        pieces, last = [], first + count
        for phase, (begin, end) in enumerate(pairwise([*self.begins, last])):
            piece = max(first, begin), min(last, end)
            if piece[0] < piece[1]:
                pieces.append((phase, piece[0] - begin, piece[1] - begin))
        return pieces

    def _compute_block(self, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        datasets, samples = self.blends[phase].sources(block * BLOCK, BLOCK)
        return datasets, samples + self._given[phase][datasets]


def read_sources(datasets: Sequence[Samples], which: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """int64 [count, sequence_length + 1]: sample samples[i] of data set which[i].

    The samples of one data set must be consecutive.
    """
    rows: np.ndarray | None = None
    for dataset in np.unique(which):
        here = which == dataset
        its = samples[here]
        found = datasets[dataset].read(int(its[0]), len(its))
        if rows is None:
            rows = np.empty((len(which), found.shape[1]), np.int64)
        rows[here] = found
    assert rows is not None  # nobody reads no sample
    return rows
