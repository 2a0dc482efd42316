"""What a model makes of every segment of a store: a forward pass alone, on any layout, brought to the first rank."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
from torch import Tensor

from megatron_lite.alignment.batches import Collator, Sample, laid_out
from megatron_lite.alignment.columns import MARGIN
from megatron_lite.alignment.dealing import DataRank, OnceThrough
from megatron_lite.alignment.packing import best_fit
from megatron_lite.alignment.store import Store
from megatron_lite.errors import DataError
from megatron_lite.model.model import Model
from megatron_lite.model.objective import Objective
from megatron_lite.model.sequences import Sequences
from megatron_lite.progress import Progress

Read = Callable[[np.ndarray], float]


def of_segments(store: Store, model: Model, objective: Objective, read: Read, title: str) -> np.ndarray | None:
    """float64 [samples, segments of each] on rank 0, None elsewhere; all ranks call it.

    `read` makes a number of a segment's float64 [n, tokens], n in the order of the fields of `Outputs` or `Values`.
    Samples are packed into rows of train.sequence_length tokens, train.global_batch_size of them at a time.
    """
    train, place, first = model.config.train, DataRank.of(model), model.mesh.rank == 0
    rows = best_fit(store.lengths, train.sequence_length)
    dealt = OnceThrough(len(rows), train.global_batch_size, train.micro_batch_size, place)
    collate = Collator(model.config.model.vocab_size, train.sequence_length, place.multiple)

    def samples(some: range) -> list[list[Sample]]:
        return [[Sample(store.sample(number), number) for number in rows.row(row)] for row in some]

    def microbatch(some: range) -> Sequences:
        return collate(samples(some))

    found = np.full((len(store), 2 if MARGIN.name in store.columns else 1), np.nan)
    with Progress(title, len(rows), unit="rows") if first else nullcontext() as progress:
        for number in range(dealt.batches):
            ranks = model.outputs_on_first(dealt.sequences(number, microbatch), objective)
            for rank, made in enumerate(ranks or ()):
                for some, outputs in zip(dealt.microbatches(number, rank), made, strict=False):  # but those filled up
                    _read(samples(some), outputs, read, found)
            if progress is not None:
                progress.advance(min((number + 1) * dealt.size, len(rows)))
    return found if first else None


def check_finite(found: np.ndarray, store: Store, what: str) -> None:
    """Raises DataError, naming the first row of the file that has a number which is not."""
    wrong = np.flatnonzero(~np.isfinite(found).all(1))
    if len(wrong):
        row = int(store.columns["row"][wrong[0]])
        raise DataError(f"row {row}: the {what} is {found[wrong[0]].tolist()}: must be finite")


def _read(rows: Sequence[Sequence[Sample]], outputs: Tensor, read: Read, found: np.ndarray) -> None:
    """Of a microbatch [n, B, S]."""
    numbers = outputs.double().cpu().numpy()
    for row, samples in enumerate(rows):
        for one in laid_out(samples):
            found[one.sample.number, one.number] = read(numbers[:, row, one.begin : one.end])
