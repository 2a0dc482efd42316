"""From samples to microbatches: the segments of a row one after the other, each a document with positions of its own.

tokens      a b c | d e f g | 0 0    of which c, f and g are trained
labels      - c - | - f g - | - -    the next token of the same segment, where that is trained; else -1
documents   0 0 0 | 1 1 1 1 | 2 2    what fills the row up is a document that counts nothing
positions   0 1 2 | 0 1 2 3 | 0 1
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from megatron_lite.alignment.columns import LAST, PAIRED
from megatron_lite.alignment.store import Segment
from megatron_lite.device import to_device
from megatron_lite.model.sequences import Draws, Sequences
from megatron_lite.model.splitmix import mixed

FILLING = -1  # the number of the sample that padding belongs to


@dataclass(frozen=True)
class Sample:
    """What lies in a row: a dialogue's segment, or a pair's two, chosen and rejected.

    number   which sample of its set
    key      of its set and step, by which its random numbers are drawn
    columns  numbers of its segments by name, float64 [segments]
    """

    segments: Sequence[Segment]
    number: int
    key: int = 0
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Collator:
    """Makes `Sequences` of rows of samples.

    length    of every row (None: as long as the longest of the microbatch, rounded up to `multiple`)
    multiple  what the layout divides
    pairs     whether samples are pairs, whose documents have columns
    draws     whether there is dropout or noise to draw
    """

    vocab_size: int
    length: int | None
    multiple: int = 1
    pairs: bool = False
    draws: bool = False

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> Sequences:
        """Of pairs with columns paired float64 [B, D], D even: 1 for both documents of a pair, 0 where there is none;
        last float64 [B, S]: 1 at the last token of each; and float64 [B, D] each of the samples' own.
        """
        size = len(rows), self._length_of(rows)
        tokens, labels = np.zeros(size, np.int64), np.full(size, -1)
        documents, positions = np.empty(size, np.int64), np.empty(size, np.int64)
        for row, samples in enumerate(rows):
            laid = laid_out(samples)
            for document, one in enumerate(laid):
                where, segment = (row, slice(one.begin, one.end)), one.segment
                tokens[where] = segment.tokens
                labels[row, one.begin : one.end - 1] = np.where(segment.trained[1:], segment.tokens[1:], -1)
                documents[where], positions[where] = document, np.arange(len(segment.tokens))
            filled = laid[-1].end
            documents[row, filled:], positions[row, filled:] = len(laid), np.arange(size[1] - filled)
        return Sequences(
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            self.vocab_size,
            torch.from_numpy(documents),
            torch.from_numpy(positions),
            self._columns(rows, size) if self.pairs else {},
            self._draws(rows, size) if self.draws else None,
        )

    def _length_of(self, rows: Sequence[Sequence[Sample]]) -> int:
        if self.length is not None:
            return self.length
        longest = max(laid_out(samples)[-1].end for samples in rows)
        return -(-longest // self.multiple) * self.multiple

    def _columns(self, rows: Sequence[Sequence[Sample]], size: tuple[int, int]) -> dict[str, Tensor]:
        names = rows[0][0].columns
        most = max(len(laid_out(samples)) for samples in rows)
        by_document, last = {name: np.zeros((size[0], most)) for name in (PAIRED.name, *names)}, np.zeros(size)
        for row, samples in enumerate(rows):
            for document, one in enumerate(laid_out(samples)):
                by_document[PAIRED.name][row, document] = last[row, one.end - 1] = 1
                for name in names:
                    by_document[name][row, document] = one.sample.columns[name][one.number]
        return {name: torch.from_numpy(numbers) for name, numbers in (by_document | {LAST.name: last}).items()}

    def _draws(self, rows: Sequence[Sequence[Sample]], size: tuple[int, int]) -> Draws:
        samples, keys = np.full(size, FILLING), np.zeros(size, np.int64)
        places, lengths = np.zeros(size, np.int64), np.ones(size, np.int64)
        for row, one in ((row, one) for row, its in enumerate(rows) for one in laid_out(its)):
            where, length = (row, slice(one.begin, one.end)), one.end - one.begin
            samples[where], keys[where], lengths[where] = one.sample.number, one.sample.key, length
            places[where] = np.arange(one.place, one.place + length)
        of_sample = mixed(torch.from_numpy(samples), torch.from_numpy(keys))
        return Draws(mixed(torch.from_numpy(places), of_sample), torch.from_numpy(lengths))


@dataclass(frozen=True)
class Laid:
    """A document of a row: where it begins and ends there, which segment of which sample it is, and where in the sample
    it begins.
    """

    begin: int
    end: int
    sample: Sample
    number: int
    place: int

    @property
    def segment(self) -> Segment:
        return self.sample.segments[self.number]


def laid_out(samples: Sequence[Sample]) -> list[Laid]:
    """The documents of a row, one behind the other."""
    laid, end = [], 0
    for sample in samples:
        first = end
        for number, segment in enumerate(sample.segments):
            begin, end = end, end + len(segment.tokens)
            laid.append(Laid(begin, end, sample, number, begin - first))
    return laid


def on_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same there; from a CPU's memory."""

    def move(tensor: Tensor) -> Tensor:
        return to_device(tensor.numpy(), device)

    documents, positions, draws = sequences.documents, sequences.positions, sequences.draws
    return replace(
        sequences,
        tokens=move(sequences.tokens),
        labels=move(sequences.labels),
        documents=None if documents is None else move(documents),
        positions=None if positions is None else move(positions),
        columns={name: move(numbers) for name, numbers in sequences.columns.items()},
        draws=None if draws is None else Draws(move(draws.keys), move(draws.lengths)),
    )
