"""The same work as Ray core tasks, on this machine or a cluster whose nodes share the file system.

Tasks over whole shards, not Ray Data over rows: nothing here needs Ray to move rows.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from megatron_lite.curation.engine.pool import WorkerLost
from megatron_lite.errors import MegatronLiteError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


class RayTasks:
    """Ray core tasks of one CPU each. `address` None starts a cluster of `workers` CPUs on this machine.

    Raises UsageError where Ray is not installed, MegatronLiteError where it does not start.
    """

    def __init__(self, workers: int, address: str | None):
        if importlib.util.find_spec("ray") is None:
            raise UsageError("engine = ray: the package ray is not installed (pip install 'megatron_lite[ray]')")
        import ray

        self._ray = ray
        options: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises Exception itself, for a start that takes too long
            raise MegatronLiteError(f"engine = ray: Ray does not start: {' '.join(str(error).split())}") from error

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        ray = self._ray
        # A lost worker is told, not tried again: what it had in hand may be what kills it.
        remote = ray.remote(num_cpus=1, max_retries=0)(_call)
        shared = ray.put(function)
        waiting = iter(enumerate(items))
        ahead = 2 * int(ray.cluster_resources().get("CPU", 1))
        pending: dict[Any, int] = {}
        while True:
            while len(pending) < ahead and (following := next(waiting, None)):
                index, item = following
                pending[remote.remote(shared, item)] = index
            if not pending:
                return
            (done,), _ = ray.wait(list(pending), num_returns=1)
            index = pending.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except ray.exceptions.RayError as error:
                raise WorkerLost(index, str(error).splitlines()[0]) from None
            yield index, result

    def close(self) -> None:
        self._ray.shutdown()

    def __enter__(self) -> "RayTasks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
