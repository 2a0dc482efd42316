"""Engine: a function over many items, as they are done. The default is a pool of processes on this machine.

A pool of our own, since it has to tell what the standard ones do not: which item a worker had in hand when it died.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from megatron_lite.workers import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs picklable functions (top-level ones, or frozen dataclasses with __call__) over picklable items."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """(index, result) of each item as it is done.

        What the function raises is raised here; WorkerLost where a worker died. Then nothing more is begun.
        """

    def close(self) -> None: ...


class WorkerLost(Exception):
    """The worker that had item `index` in hand is gone."""

    def __init__(self, index: int, how: str):
        super().__init__(index, how)
        self.index, self.how = index, how


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    index: int | None = None  # the item in hand


class Pool:
    """`workers` processes, started when there is something to do and kept until `close`."""

    def __init__(self, workers: int):
        self._size = workers
        self._workers: list[_Worker] = []
        # Not forked from this process, since a fork of one with threads (tqdm has one) may hang, but from a server that
        # has imported what work needs.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        while len(self._workers) < min(self._size, len(items)):
            self._workers.append(self._start())
        waiting = iter(enumerate(items))
        try:
            for worker, (index, item) in zip(self._workers, waiting, strict=False):
                self._hand(worker, index, function, item)
            while busy := [(worker.index, worker) for worker in self._workers if worker.index is not None]:
                at_work: dict[object, tuple[int, _Worker]] = {worker.connection: (at, worker) for at, worker in busy}
                for connection in wait([worker.connection for _, worker in busy]):
                    index, worker = at_work[connection]
                    result = _receive(worker, index)
                    worker.index = None
                    if following := next(waiting, None):
                        self._hand(worker, following[0], function, following[1])
                    yield index, result
        finally:
            if any(worker.index is not None for worker in self._workers):
                self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end alone keeps the pipe open
        return _Worker(process, ours)

    def _hand(self, worker: _Worker, index: int, function: Callable[[Item], Any], item: Item) -> None:
        worker.index = index
        try:
            worker.connection.send((function, item))
        except BrokenPipeError:
            raise WorkerLost(index, _end_of(worker.process)) from None


def _receive(worker: _Worker, index: int) -> Any:
    try:
        succeeded, value = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerLost(index, _end_of(worker.process)) from None
    if not succeeded:
        raise value
    return value


def _end_of(process: BaseProcess) -> str:
    process.join()
    code = process.exitcode
    assert code is not None  # it has ended
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as by a machine that runs out of memory: try fewer workers or smaller shards"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(connection: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    while True:
        try:
            function, item = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(item))
        except Exception as error:
            answer = (False, _portable(error))
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The exception as it can be sent, its traceback in a note."""
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # one of a library whose arguments do not rebuild it
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
