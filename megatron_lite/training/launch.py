"""Joining the world that torchrun or srun started, and leaving it with one reason and the right exit code."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lite.device import backend, keep_freed_memory, local_device
from megatron_lite.errors import MegatronLiteError


@dataclass(frozen=True)
class Place:
    """This process among those that were started together; torchrun tells by RANK and WORLD_SIZE."""

    rank: int
    world_size: int

    @property
    def first(self) -> bool:
        return self.rank == 0


def find_place() -> Place:
    return Place(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def joined_world(place: Place, timeout_seconds: float) -> Iterator[torch.device]:
    """The default process group while the body runs, and this process's device. A world of one needs no group."""
    device = local_device()
    keep_freed_memory(device)
    if place.world_size == 1:
        yield device
        return
    dist.init_process_group(backend(device), timeout=timedelta(seconds=timeout_seconds))
    yield device
    # Only on success: after a failure the other ranks may never answer, and the process ends anyway.
    dist.destroy_process_group()


def run_job(run_dir: Path, place: Place, job: Callable[[], str]) -> None:
    """Run a job of all ranks. `run_dir/exit.json` gets the code, the rank and the reason of its end.

    `job` returns the reason of a good end. The first rank that fails writes the file and prints the line, the others
    exit with the same code in silence; other exceptions print their traceback and exit with 1. A file of an earlier run
    is removed before the ranks meet.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "exit.json"
    if place.first:
        path.unlink(missing_ok=True)
    try:
        reason = job()
    except MegatronLiteError as error:
        if _write_exit(path, error.exit_code, place, str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        _leave(error.exit_code)
    except Exception as error:
        _write_exit(path, 1, place, f"{type(error).__name__}: {error}")
        sys.excepthook(*sys.exc_info())
        _leave(1)
    if place.first:
        _write_exit(path, 0, place, reason)


def _write_exit(path: Path, code: int, place: Place, reason: str) -> bool:
    """Whether this rank was the first to write it."""
    temporary = path.with_name(f"exit.{place.rank}.tmp")
    temporary.write_text(json.dumps({"code": code, "rank": place.rank, "reason": reason}) + "\n", encoding="utf-8")
    try:
        os.link(temporary, path)  # fails where the file exists, and is never seen half written
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _leave(code: int) -> None:
    """End the process now: threads of a broken process group would otherwise keep it waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
