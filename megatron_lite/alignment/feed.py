"""What a run after pretraining trains on and validates on: rows of samples as microbatches."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from megatron_lite.alignment.batches import Collator, on_device
from megatron_lite.alignment.dealing import DataRank, OnceThrough
from megatron_lite.alignment.packing import Fill, Rows, best_fit, fill_of, one_each
from megatron_lite.alignment.sets import RunRows, SampleSet, capacity_of
from megatron_lite.config import AlignedConfig, batch_size_after
from megatron_lite.model.sequences import Sequences
from megatron_lite.model.splitmix import key_of


class RowsFeed:
    """`consumed` counts rows, packed or not: which samples a step holds depends on (data.seed, consumed) alone.

    A thread makes the batch that follows while this one is worked on.
    """

    def __init__(self, sets: Sequence[SampleSet], config: AlignedConfig, place: DataRank):
        self.config, self.place, self.rows = config, place, RunRows(sets, config)
        self.collate = collator_of(config, place, config.draws)
        self._ahead = _Ahead(self._read)

    def size(self, consumed: int) -> int:
        return batch_size_after(consumed, self.config.train)

    def microbatches(self, consumed: int, step: int) -> list[Sequences]:
        following = consumed + self.size(consumed), step + 1
        return [on_device(one, self.place.device) for one in self._ahead.get((consumed, step), following)]

    def tokens(self, consumed: int) -> int:
        return self.rows.tokens(consumed)

    def fills(self) -> dict[str, Fill]:
        """By name of a set, in its first epoch."""
        return self.rows.fills()

    def close(self) -> None:
        self._ahead.close()

    def _read(self, consumed: int, step: int) -> list[Sequences]:
        mine = self.size(consumed) // self.place.size
        sets, seed = self.rows.sets, self.config.train.seed
        keys = [key_of(seed, one.name, step) for one in sets]
        rows = [
            [sets[one].sample(number, keys[one]) for number in samples]
            for one, samples in self.rows.read(consumed + self.place.rank * mine, mine)
        ]
        micro = self.config.train.micro_batch_size
        return [self.collate(rows[first : first + micro]) for first in range(0, mine, micro)]


@dataclass(frozen=True)
class RowsValidation:
    """A set read once through, in the order of its file; packed where training's rows are."""

    given: SampleSet
    config: AlignedConfig
    place: DataRank

    @property
    def name(self) -> str:
        return self.given.name

    @property
    def weight(self) -> float:
        return self.given.weight

    @cached_property
    def rows(self) -> Rows:
        lengths, capacity = self.given.store.lengths, capacity_of(self.config)
        return one_each(len(lengths)) if capacity is None else best_fit(lengths, capacity).in_file_order()

    def fill(self) -> Fill:
        train = self.config.train
        return fill_of(self.rows, self.given.store.lengths, capacity_of(self.config), train.micro_batch_size)

    def batches(self) -> int:
        return self._once.batches

    def samples(self, number: int) -> list[list[int]]:
        """Of each row that this data rank has of a global batch, in order."""
        return [self.rows.row(row) for rows in self._once.microbatches(number, self.place.rank) for row in rows]

    def microbatches(self, number: int) -> list[Sequences]:
        collate = collator_of(self.config, self.place, draws=False)

        def make(rows: range) -> Sequences:
            return collate([[self.given.sample(sample) for sample in self.rows.row(row)] for row in rows])

        return self._once.sequences(number, make)

    @property
    def _once(self) -> OnceThrough:
        train = self.config.train
        return OnceThrough(len(self.rows), train.global_batch_size, train.micro_batch_size, self.place)


def collator_of(config: AlignedConfig, place: DataRank, draws: bool) -> Collator:
    return Collator(config.model.vocab_size, capacity_of(config), place.multiple, config.compares, draws)


class _Ahead:
    """Does what is likely to be asked for next."""

    def __init__(self, work: Callable[..., list[Sequences]]):
        self.work = work
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self.next: tuple[tuple[int, int], Future[list[Sequences]]] | None = None

    def get(self, asked: tuple[int, int], following: tuple[int, int]) -> list[Sequences]:
        """What `work` makes of `asked`; it goes on with `following`."""
        ready = self.next[1] if self.next is not None and self.next[0] == asked else None
        found = self.work(*asked) if ready is None else ready.result()
        self.next = following, self.thread.submit(self.work, *following)
        return found

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
