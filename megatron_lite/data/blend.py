"""Several data sets mixed by weight."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from megatron_lite.data import _helpers
from megatron_lite.data.samples import Samples

BLOCK = 1 << 16  # samples whose sources are computed and kept at once


class BlendedDataset:
    """Sample i comes from the data set whose share of the first i samples lags its weight most, first one on a tie.

    So the first n samples hold n * weight of each data set to within a few, whatever n, and a longer run begins with
    the samples of a shorter one. No index of the whole run is kept: blocks are computed as they are asked for, about
    10 ns a sample, also when a resumed run first jumps far in.
    """

    def __init__(self, datasets: Sequence[Samples], weights: Sequence[float]):
        """weights: one a data set, positive, on any scale. Raises ValueError otherwise."""
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            raise ValueError(f"{len(datasets)} data sets with weights {list(weights)}; each takes one above 0")
        total = sum(weights)
        self.datasets = tuple(datasets)
        self.weights = [weight / total for weight in weights]
        # counts[b][d]: how many samples data set d gave before block b
        self._counts = [[0] * len(datasets)]
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def __len__(self) -> int:
        """Samples of one epoch of every data set together."""
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, index: int) -> np.ndarray:
        """int64 [sequence_length + 1] for any index >= 0; a data set that runs out begins its next epoch."""
        dataset, sample = self.source(index)
        return self.datasets[dataset][sample]

    def source(self, index: int) -> tuple[int, int]:
        """(data set, sample of it) that stands at `index`. Raises IndexError below 0."""
        if index < 0:
            raise IndexError(f"sample {index}; samples count from 0")
        block, offset = divmod(index, BLOCK)
        datasets, samples = self._block(block)
        return int(datasets[offset]), int(samples[offset])

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        # The rule needs the counts at the block's start, hence every block before it once.
        while len(self._counts) <= block + 1:
            self._append_counts()
        datasets, samples, _ = _helpers.blend(self.weights, block * BLOCK, (block + 1) * BLOCK, self._counts[block])
        return datasets, samples

    def _append_counts(self) -> None:
        begin = (len(self._counts) - 1) * BLOCK
        *_, counts = _helpers.blend(self.weights, begin, begin + BLOCK, self._counts[-1])
        self._counts.append(counts)
