"""Batches for one rank. The only state is how many samples the run has consumed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from megatron_lite.data.samples import Samples
from megatron_lite.errors import UsageError


class Loader:
    """Reads the rank's rows of global batches: samples `consumed + rank's rows` of the data set's one order.

    Which samples a global batch holds depends on (seed, samples consumed) alone; `data_rank` and `data_size` only deal
    them out. A thread reads the batch that follows while this one is worked on.
    """

    def __init__(self, dataset: Samples, *, batch_size: Callable[[int], int], data_rank: int, data_size: int):
        """`batch_size` tells a global batch's size from the samples consumed before it.

        Raises UsageError where the rank is not one of `data_size`.
        """
        if not 0 <= data_rank < data_size:
            raise UsageError(f"data rank {data_rank} is not one of {data_size}")
        self.dataset, self.batch_size = dataset, batch_size
        self.data_rank, self.data_size = data_rank, data_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._next: tuple[int, Future[np.ndarray]] | None = None

    def batch(self, consumed: int) -> np.ndarray:
        """int64 [global batch / data_size, sequence_length + 1], after `consumed` samples of the run.

        Raises UsageError where the batch does not divide over the ranks.
        """
        if self._next is not None and self._next[0] == consumed:
            batch = self._next[1].result()
        else:
            batch = self._read(consumed)
        following = consumed + self.batch_size(consumed)
        self._next = following, self._thread.submit(self._read, following)
        return batch

    def close(self) -> None:
        """Stop the thread; the loader gives no batches after."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, consumed: int) -> np.ndarray:
        size = self.batch_size(consumed)
        if size < 1 or size % self.data_size:
            raise UsageError(f"global batch size {size} is no multiple of the data-parallel size {self.data_size}")
        rows = size // self.data_size
        first = consumed + self.data_rank * rows
        return self.dataset.read(first, rows)
