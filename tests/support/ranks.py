"""Real gloo processes, started once and reused: importing torch costs seconds, a process group milliseconds.

`Ranks.run(function, world, *arguments)` calls `function(*arguments)` on ranks 0..world-1, each inside a default process
group of exactly that size, and returns the results in rank order. A rank that raises or hangs ends the job: the
processes are replaced, and the first rank's traceback is the error.
"""

import multiprocessing as mp
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

SIZE = 8


class RankFailure(AssertionError):
    """A rank raised, died or did not answer; the message carries its traceback."""


def _serve(rank: int, port: int, connection) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    while (job := connection.recv()) is not None:
        number, world, function, arguments = job
        prefix = dist.PrefixStore(f"job{number}", store)
        try:
            dist.init_process_group("gloo", store=prefix, rank=rank, world_size=world, timeout=timedelta(seconds=60))
            result = (True, function(*arguments))
        except Exception:
            result = (False, traceback.format_exc())
        connection.send(result)
        if dist.is_initialized():
            dist.destroy_process_group()


class Ranks:
    """A pool of processes; those a job needs are started when it first asks for them."""

    def __init__(self) -> None:
        self.context = mp.get_context("spawn")
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.members: list[tuple[Any, Any]] = []
        self.jobs = 0

    def run(self, function: Callable, world: int, *arguments, timeout: float = 120) -> list[Any]:
        self._start(world)
        self.jobs += 1
        for _, connection in self.members[:world]:
            connection.send((self.jobs, world, function, arguments))
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < world:
            self._collect(world, answers)
            failed = [rank for rank, (good, _) in answers.items() if not good]
            if failed or time.monotonic() > deadline:
                self.stop()
                silent = sorted(set(range(world)) - set(answers))
                raise RankFailure(
                    f"rank {failed[0]}:\n{answers[failed[0]][1]}" if failed else f"no answer from ranks {silent}"
                )
        return [answers[rank][1] for rank in range(world)]

    def _collect(self, world: int, answers: dict[int, tuple[bool, Any]]) -> None:
        waiting = {self.members[rank][1]: rank for rank in range(world) if rank not in answers}
        for connection in mp.connection.wait(list(waiting), timeout=1):
            rank = waiting[connection]
            try:
                answers[rank] = connection.recv()
            except EOFError:
                answers[rank] = (False, "the process ended")

    def _start(self, world: int) -> None:
        for rank in range(len(self.members), world):
            mine, theirs = self.context.Pipe()
            process = self.context.Process(target=_serve, args=(rank, self.store.port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.members.append((process, mine))

    def stop(self) -> None:
        """End every process; the next job starts new ones."""
        for process, _ in self.members:
            process.kill()
        for process, connection in self.members:
            process.join()
            connection.close()
        self.members.clear()
