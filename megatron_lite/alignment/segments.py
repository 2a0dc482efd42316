"""What a model makes of every segment of a store: a forward pass alone, on any layout, brought to the first rank."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

import numpy as np

from megatron_lite.alignment.batches import Collator, Sample, laid_out, on_device
from megatron_lite.alignment.columns import MARGIN
from megatron_lite.alignment.dealing import DataRank
from megatron_lite.alignment.packing import Rows, best_fit
from megatron_lite.alignment.store import Store
from megatron_lite.model.model import Model
from megatron_lite.model.objective import Objective
from megatron_lite.model.sequences import Sequences, padded
from megatron_lite.progress import Progress

Read = Callable[[np.ndarray], float]


def of_segments(store: Store, model: Model, objective: Objective, read: Read, title: str) -> np.ndarray | None:
    """float64 [samples, segments of each] on rank 0, None elsewhere; all ranks call it.

    `read` makes a number of a segment's float64 [n, tokens], n in the order of the fields of `Outputs` or `Values`.
    """
    reading = Reading.of(store, model)
    found = np.full((len(store), 2 if MARGIN.name in store.columns else 1), np.nan)
    first = model.mesh.rank == 0
    with Progress(title, len(reading.rows), unit="rows") if first else nullcontext() as progress:
        for number in range(reading.batches):
            ranks = model.outputs_on_first(reading.sequences(number), objective)
            for rank, made in enumerate(ranks or ()):
                for rows, outputs in zip(reading.microbatches(number, rank), made, strict=False):  # not those filled up
                    numbers = outputs.double().cpu().numpy()
                    for row, samples in enumerate(rows):
                        for one in laid_out(reading.samples(samples)):
                            value = read(numbers[:, row, one.begin : one.end])
                            found[one.sample.number, one.number] = value
            if progress is not None:
                progress.advance(min((number + 1) * reading.size, len(reading.rows)))
    return found if first else None


@dataclass(frozen=True)
class Reading:
    """A store's samples, packed into rows of train.sequence_length tokens, dealt out evenly in batches of `size` rows:
    every data rank has equally many microbatches.
    """

    store: Store
    rows: Rows
    collate: Collator
    place: DataRank
    size: int
    micro: int  # rows of a microbatch

    @classmethod
    def of(cls, store: Store, model: Model) -> "Reading":
        train, place = model.config.train, DataRank.of(model)
        collate = Collator(model.config.model.vocab_size, train.sequence_length, place.multiple)
        rows = best_fit(store.lengths, train.sequence_length)
        return cls(store, rows, collate, place, train.global_batch_size, train.micro_batch_size)

    @property
    def batches(self) -> int:
        return ceil(len(self.rows) / self.size)

    def microbatches(self, number: int, rank: int) -> list[list[list[int]]]:
        """Of a data rank in a batch: for each microbatch the samples of each of its rows."""
        first, each = number * self.size, self._each(number)
        begin, end = (min(first + each * n, first + self.size, len(self.rows)) for n in (rank, rank + 1))
        starts = range(begin, end, self.micro)
        return [[self.rows.row(row) for row in range(start, min(start + self.micro, end))] for start in starts]

    def sequences(self, number: int) -> list[Sequences]:
        """This data rank's, on the device, filled up to as many as the others have."""
        mine = [
            self.collate([self.samples(row) for row in rows]) for rows in self.microbatches(number, self.place.rank)
        ]
        made = mine or [self.collate([self.samples(self.rows.row(0))]).nothing()]
        count, stages = ceil(self._each(number) / self.micro), self.place.stages
        return [on_device(one, self.place.device) for one in padded(made, ceil(count / stages) * stages)]

    def samples(self, numbers: list[int]) -> list[Sample]:
        return [Sample(self.store.sample(number), number) for number in numbers]

    def _each(self, number: int) -> int:
        """Rows of a data rank in a batch."""
        return ceil(min(self.size, len(self.rows) - number * self.size) / self.place.size)
