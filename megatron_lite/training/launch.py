"""Joining the world that torchrun or srun started, and leaving it with one reason and the right exit code."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lite.device import backend, keep_freed_memory, local_device
from megatron_lite.errors import MegatronLiteError
from megatron_lite.place import Place


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


class Ending:
    """`run_dir/exit.json`: the code, the rank and the reason of a job's end, written by whichever rank ends first.

    A file that was there when this process started is taken for an earlier job's and gives way.
    """

    def __init__(self, run_dir: Path, place: Place):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path, self.place = run_dir / "exit.json", place
        self.earlier = _identity(self.path)

    def ranks_have_met(self) -> None:
        """Remove an earlier job's file. It was not this job's: a rank that had failed would have met nobody."""
        if self.place.first:
            self._remove_earlier()

    def write(self, code: int, reason: str) -> bool:
        """Whether this rank was the first of its job to write."""
        self._remove_earlier()
        temporary = self.path.with_name(f"exit.{self.place.rank}.tmp")
        content = {"code": code, "rank": self.place.rank, "reason": reason}
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        try:
            os.link(temporary, self.path)  # fails where the file exists, and is never seen half written
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _remove_earlier(self) -> None:
        if self.earlier is not None and _identity(self.path) == self.earlier:
            self.path.unlink(missing_ok=True)


def run_job(run_dir: Path, place: Place, job: Callable[[Ending], str]) -> None:
    """Run a job of all ranks; its end goes into `run_dir/exit.json`.

    `job` calls `ranks_have_met` when they have, and returns the reason of a good end. The first rank that fails writes
    the file and prints: one line for an error of ours, with its exit code, a traceback and 1 for any other exception.
    Ranks that find the same error end in silence with the same code, ranks that miss a neighbour with a line and 1.
    """
    ending = Ending(run_dir, place)
    if place.world_size > 1:
        end_with_launcher()
    try:
        reason = job(ending)
    except MegatronLiteError as error:
        if ending.write(error.exit_code, str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        _leave(error.exit_code)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if ending.write(1, what):
            sys.excepthook(*sys.exc_info())
        else:
            print(f"rank {place.rank} ends after another failed: {what.splitlines()[0]}", file=sys.stderr, flush=True)
        _leave(1)
    if place.first:
        ending.write(0, reason)


def end_with_launcher() -> None:
    """End this process when the one that started it is gone.

    torchrun's processes outlive a torchrun that was killed by force; they would train on, and write where the job that
    takes over writes too.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher watch").start()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells one file of this name from the next; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _leave(code: int) -> None:
    """End the process now: threads of a broken process group would otherwise keep it waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
