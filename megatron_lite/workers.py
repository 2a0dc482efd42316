"""Worker processes: results in the items' order, no more of them held than asked for, none left behind."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from megatron_lite.errors import MegatronLiteError

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process with threads (tqdm has one) may hang.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Make this worker exit when its parent is gone; killed by force, the parent could not tell it to."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # a worker has one
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def map_in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the items' order, with at most `ahead` items taken and not yet given back.

    `pool.map` would take all items first: the whole corpus in memory.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= ahead:
                yield _done(*pending.popleft())
        while pending:
            yield _done(*pending.popleft())
    except BrokenProcessPool:
        raise MegatronLiteError(
            "a worker process died; the machine may be out of memory: try fewer --workers"
        ) from None


def _done(item: Item, future: Future[Result]) -> tuple[Item, Result]:
    return item, future.result()
