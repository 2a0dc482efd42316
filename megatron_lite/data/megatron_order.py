"""`order: megatron`: the samples of megatron-core 0.16.1 in its order, number for number.

Training is split, counted, shuffled and blended as Megatron does for `--data-path [WEIGHT] PREFIX ...` with the same
seed, sequence length and number of samples. Every epoch's sequences are copied into one list that is shuffled as a
whole (the last epoch apart, where less than 80% of it is used); the shuffled sequences, end to end, are cut into
samples; the samples are shuffled once more. So the whole order depends on the length of the run: a run of other
`train.steps` reads other data from its first step on. `order: stable` has none of that.

Where Megatron goes wrong this does not follow: sample counts are integer divisions (a float32 there loses the tail of
a validation set, or aborts), and what its 32-bit arrays cannot hold is refused.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from megatron_lite.data import _helpers
from megatron_lite.data.blend import BLOCK, read_sources
from megatron_lite.data.cache import cached
from megatron_lite.data.indexed import IndexedDataset
from megatron_lite.data.samples import Samples, count_tokens, stretches
from megatron_lite.errors import DataError, UsageError

SURPLUS = 0.005  # of samples that each data set of a blend has beyond its share
SEPARATE_BELOW = 0.80  # of an epoch
MOST_SEQUENCES = 2**31 - 1  # Megatron numbers them in int32
MOST_SHUFFLED = 2**32 - 2  # elements of one shuffle; from there on numpy draws other random numbers
SEEDS = 2**32


class MegatronDataset:
    """One data set's samples, as many whole epochs as hold the `samples` asked for (None: one epoch).

    document_index int32 [places]: which sequence stands at each place; sample_index int64 [n + 1, 2]: at which place
    and how many tokens into it each sample begins; shuffle_index uint32 [n]: which of these stands at each position.
    """

    def __init__(
        self,
        source: IndexedDataset,
        sequence_length: int,
        seed: int,
        samples: int | None,
        sequences: range | None = None,
        cache_dir: Path | None = None,
    ):
        """Raises DataError for a range of sequences without tokens or too large, UsageError for a seed too large."""
        if seed >= SEEDS:
            raise UsageError(f"data.seed = {seed}: must be below {SEEDS} with data.order = megatron")
        self.source, self.sequence_length, self.seed = source, sequence_length, seed
        self.sequences = range(source.sequence_count) if sequences is None else sequences
        self.tokens = count_tokens(source, self.sequences, cache_dir)
        if self.tokens == 0:
            raise DataError(
                f"{source.prefix}: sequences {self.sequences.start} to {self.sequences.stop} hold no tokens"
            )
        self.epochs = 1 if samples is None else -(-(samples * sequence_length + 1) // self.tokens)
        self._refuse_what_does_not_fit()
        if self._samples_in(self.epochs) == 0:
            raise DataError(
                f"{source.prefix}: {self.tokens} tokens; one sample of sequence_length {sequence_length} takes "
                f"{sequence_length + 1}"
            )
        self.separate_from = None if samples is None else self._separate_from(samples)

        elements = self.epochs * len(self.sequences) + self._samples_in(self.epochs)
        build = cache(self._build)  # one stream of random numbers goes through all three

        def one(number: int) -> Callable[[], np.ndarray]:
            return lambda: build()[number]

        parameters = {
            "first": self.sequences.start,
            "last": self.sequences.stop,
            "sequence_length": sequence_length,
            "seed": seed,
            "samples": -1 if samples is None else samples,
        }
        self.document_index, self.sample_index, self.shuffle_index = (
            cached(cache_dir, f"megatron_{name}", source.fingerprint, parameters, elements, one(i))
            for i, name in enumerate(("documents", "samples", "shuffle"))
        )
        self._reader = _helpers.SampleReader(
            source.tokens,
            source.lengths,
            source.pointers,
            self.sample_index,
            len(self.document_index),
            sequence_length,
            self.document_index,
        )

    def __len__(self) -> int:
        return len(self.shuffle_index)

    def read(self, first: int, count: int) -> np.ndarray:
        """int64 [count, sequence_length + 1]. Raises IndexError outside [0, len)."""
        if first < 0 or first + count > len(self):
            raise IndexError(f"samples {first} to {first + count} of {len(self)} in {self.source.prefix}")
        return self._reader.read(self.shuffle_index[first : first + count].astype(np.int64))

    def _samples_in(self, epochs: int) -> int:
        """How many samples so many epochs hold; the last token of one is the first of the next."""
        return (epochs * self.tokens - 1) // self.sequence_length

    def _separate_from(self, samples: int) -> int | None:
        """The sample from which the last epoch is shuffled apart; None where it is not."""
        if self.epochs == 1:
            return None
        before = self._samples_in(self.epochs - 1)
        return before if samples - before < int(SEPARATE_BELOW * self._samples_in(1)) else None

    def _build(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = _helpers.RandomState(self.seed)
        first, last, total = self.sequences.start, self.sequences.stop, self._samples_in(self.epochs)

        def sequences(epochs: int) -> np.ndarray:
            return random.shuffled(np.dtype(np.int32), first, last, epochs)

        def samples(begin: int, end: int) -> np.ndarray:
            return random.shuffled(np.dtype(np.uint32), begin, end)

        apart = self.separate_from
        if apart is None:
            documents = sequences(self.epochs)
        else:
            documents = np.concatenate([sequences(self.epochs - 1), sequences(1)])
        index = _helpers.build_megatron_sample_index(self.source.lengths, documents, self.sequence_length, total)
        if apart is None:
            shuffle = samples(0, total)
        else:
            shuffle = np.concatenate([samples(0, apart), samples(apart, total)])
        return documents, index, shuffle

    def _refuse_what_does_not_fit(self) -> None:
        places = self.epochs * len(self.sequences)
        samples = self._samples_in(self.epochs)
        for count, most, what in (
            (self.source.sequence_count, MOST_SEQUENCES, "sequences, which it numbers in 32 bits"),
            (max(places, samples), MOST_SHUFFLED, "sequences or samples over all epochs, more than its shuffles take"),
        ):
            if count > most:
                raise DataError(
                    f"{self.source.prefix}: megatron-core's order has no room for {count} {what}; "
                    f"data.order = stable reads them"
                )


class MegatronBlend:
    """Several data sets as Megatron blends them: sample s comes from the one with the largest weight * max(s, 1) -
    count, where count is what it gave before; the first one on a tie.
    """

    def __init__(self, datasets: Sequence[MegatronDataset], weights: Sequence[float], size: int):
        """Raises DataError where a data set has fewer samples than the blend takes of it."""
        self.datasets, self.size = tuple(datasets), size
        self.weights = normalize(normalize(weights))  # it does that twice, to other last digits
        # Samples that each data set gave before each block; the rule needs every block before it once.
        self._counts = [np.zeros(len(datasets), np.int64)]
        for begin in range(0, size, BLOCK):
            *_, counts = _helpers.blend_like_megatron(self.weights, begin, min(begin + BLOCK, size), self._counts[-1])
            self._counts.append(np.array(counts, np.int64))
        for dataset, taken in zip(datasets, self._counts[-1].tolist(), strict=True):
            if taken > len(dataset):
                raise DataError(
                    f"{dataset.source.prefix}: the blend takes {taken} samples of the {len(dataset)} that megatron-core"
                    f" makes of it; data.order = stable goes on into the next epoch"
                )
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def __len__(self) -> int:
        return self.size

    def read(self, first: int, count: int) -> np.ndarray:
        """int64 [count, sequence_length + 1]. Raises IndexError outside [0, len)."""
        if first < 0 or first + count > self.size:
            raise IndexError(f"samples {first} to {first + count} of {self.size} in the blend")
        return read_sources(self.datasets, *self.sources(first, count))

    def sources(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(data set int32 [count], sample of it int64 [count]) from `first` on."""
        parts = [
            tuple(part[begin:end] for part in self._block(block))
            for block, begin, end in stretches(first, count, BLOCK)
        ]
        datasets, samples = (np.concatenate(part) for part in zip(*parts, strict=True))
        return datasets, samples

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        begin, end = block * BLOCK, min((block + 1) * BLOCK, self.size)
        datasets, samples, _ = _helpers.blend_like_megatron(self.weights, begin, end, self._counts[block])
        return datasets, samples


def normalize(weights: Sequence[float]) -> list[float]:
    """Shares that sum to 1, in numpy's order of summation."""
    array = np.array(weights, np.float64)
    return (array / np.sum(array)).tolist()


def samples_of_each(weights: Sequence[float], samples: int) -> tuple[list[int], int]:
    """(samples to make of each data set, samples of the blend) of a run of `samples`, rounded as Megatron rounds."""
    taken = [math.ceil(samples * share) for share in normalize(weights)]
    return [math.ceil(count * (1 + SURPLUS)) for count in taken], sum(taken)


def megatron_samples(
    sources: Sequence[tuple[IndexedDataset, range | None]],
    weights: Sequence[float],
    samples: int,
    sequence_length: int,
    seed: int,
    cache_dir: Path | None,
) -> Samples:
    """The training samples of a run of `samples`: of one data set (its weight is nothing), or of several blended."""
    asked, size = ([samples], samples) if len(sources) == 1 else samples_of_each(weights, samples)
    datasets = [
        MegatronDataset(source, sequence_length, seed, count, sequences, cache_dir)
        for (source, sequences), count in zip(sources, asked, strict=True)
    ]
    return datasets[0] if len(datasets) == 1 else MegatronBlend(datasets, weights, size)
