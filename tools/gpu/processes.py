"""A function on every rank of a small world on this machine."""

import multiprocessing as mp
import multiprocessing.connection
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gpu.machine import machine_of

TIMEOUT = timedelta(seconds=60)


class RankFailure(RuntimeError):
    """A rank raised or died; the message has its traceback."""


def device_id_of(device: torch.device) -> torch.device | None:
    """What a process group is bound to, as a run's is: communicators are made with their groups, not at first use."""
    return None if device.type == "cpu" else device


def _serve(rank: int, world: int, port: int, backend: str, function: Callable, arguments: tuple, answers) -> None:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
        # On NCCL each rank has a GPU, which has to be prepared before the groups are; gloo's messages are the CPU's.
        device = machine_of(backend == "gloo", rank).device
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT,
                                device_id=device_id_of(device))  # fmt: skip
        answers.send((True, function(rank, *arguments)))
        dist.destroy_process_group()
    except Exception:
        answers.send((False, traceback.format_exc()))


def on_ranks(function: Callable, world: int, backend: str, *arguments: Any, seconds: float = 100) -> list[Any]:
    """`function(rank, *arguments)` inside a process group of `world` ranks; the results in rank order.

    Raises RankFailure for the first rank that fails, and for those that have not answered after so many seconds. All
    processes are gone afterwards.
    """
    # A server that has imported everything and no GPU: its children start at once and each takes a GPU for itself.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["gpu.small", "gpu.meshes", "gpu.machine"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    members = []
    for rank in range(world):
        mine, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(rank, world, store.port, backend, function, arguments, theirs), daemon=True
        )
        process.start()
        theirs.close()
        members.append((process, mine))
    try:
        return _collect(members, time.monotonic() + seconds)
    finally:
        for process, _ in members:
            process.kill()


def _collect(members: list, deadline: float) -> list[Any]:
    """The answer of every rank. The first failure ends it: others may wait for that rank for ever."""
    answers: dict[int, Any] = {}
    waiting = {connection: rank for rank, (_, connection) in enumerate(members)}
    while waiting:
        ready = mp.connection.wait(list(waiting), timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            raise RankFailure(f"no answer from ranks {sorted(waiting.values())}")
        for connection in ready:
            rank = waiting.pop(connection)
            try:
                good, answer = connection.recv()
            except EOFError:
                members[rank][0].join(1)
                raise RankFailure(f"rank {rank} ended with code {members[rank][0].exitcode}") from None
            if not good:
                raise RankFailure(f"rank {rank}: {answer}")
            answers[rank] = answer
    return [answers[rank] for rank in range(len(members))]
