"""Joining the world that torchrun or srun started, and leaving it with one reason and the right exit code."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lite.device import DeviceKind, backend, local_device, prepare
from megatron_lite.errors import MegatronLiteError, UsageError
from megatron_lite.parallel.words import LostRank, Words
from megatron_lite.place import Place


@dataclass(frozen=True)
class World:
    """What a rank has before there is a mesh: its device, why it is that one, and words with all others."""

    device: torch.device
    why: str
    words: Words
    timeout: timedelta  # of every process group


@contextmanager
def joined_world(place: Place, asked: DeviceKind, timeout: timedelta, flight: Path | None) -> Iterator[World]:
    """The default process group while the body runs, on the device that is asked for. A world of one needs no group.

    The ranks meet in a store first, and agree there on the kind of device. `flight` is where NCCL's watchdog writes
    (None: nowhere). Raises UsageError where they do not agree.
    """
    device, why = local_device(asked, place)
    prepare(device, flight)
    if place.world_size == 1:
        yield World(device, why, Words.alone(), timeout)
        return
    store, rank, size = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=timeout))
    words = Words.over(store, rank, size)
    _refuse_other_devices(words.exchange(device.type, "device"), words)
    dist.init_process_group(
        backend(device), store=store, rank=rank, world_size=size, timeout=timeout,
        device_id=None if device.type == "cpu" else device,
    )  # fmt: skip
    words.part("meeting")
    yield World(device, why, words, timeout)
    # Only on success: after a failure the other ranks may never answer, and the process ends anyway.
    words.part("end")
    dist.destroy_process_group()


def _refuse_other_devices(kinds: list[str], words: Words) -> None:
    """All ranks have one kind of device, or no group of theirs could work."""
    if len(set(kinds)) > 1:
        words.part("device")  # all have heard, and end with the same error
        ranks = {kind: [rank for rank, other in enumerate(kinds) if other == kind] for kind in sorted(set(kinds))}
        some = ", ".join(f"{kind} on ranks {show_ranks(those)}" for kind, those in ranks.items())
        raise UsageError(f"device = auto: gives {some}; all must have one kind, ask for cuda or cpu")


def show_ranks(ranks: list[int]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


class Ending:
    """`run_dir/exit.json`: the code, the rank and the reason of a job's end, written by whichever rank ends first.

    A file that was there when this process started is taken for an earlier job's and gives way.
    """

    def __init__(self, run_dir: Path, place: Place):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path, self.place = run_dir / "exit.json", place
        self.earlier = _identity(self.path)
        self.words = Words.alone()

    def ranks_have_met(self, words: Words) -> None:
        """Remove an earlier job's file. It was not this job's: a rank that had failed would have met nobody.

        From here on a failure is told to the ranks that wait for a word.
        """
        self.words = words
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
        if code != 0:
            self.words.fail(reason.splitlines()[0] if reason else "no reason")
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
        elif isinstance(error, LostRank):
            print(f"rank {place.rank} ends after another failed: {error}", file=sys.stderr, flush=True)
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
