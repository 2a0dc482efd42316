"""Ends a job whose ranks disagree on their next operation, and says where, instead of hanging until a timeout.

Every call is compared, before it is made, with what another member of the communicator issued under the same number:
the first to come leaves its call in the store through which the ranks met, the others hold theirs against it. A wait
that lasts longer than `patience` ends too, with what every rank is waiting for.

For finding a fault: each call costs some four round trips to the one store, and on NCCL a wait with a time limit holds
the host until the operation is done, so that nothing overlaps. A step of hundreds of ranks takes minutes.
"""

from collections import Counter
from datetime import timedelta

import torch.distributed as dist

from megatron_lite.errors import MegatronLiteError
from megatron_lite.parallel.collectives import Event, Recorder, Work

OPPOSITE = {"send": "recv", "recv": "send"}


class TranscriptError(MegatronLiteError):
    """Ranks that disagree; the message names the first call that differs, on each rank."""


class TranscriptChecker(Recorder):
    """A recorder that keeps nothing and compares everything. `patience` is in seconds."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, patience: float):
        super().__init__()
        self.store = dist.PrefixStore("transcript", store)
        self.rank, self.world_size, self.patience = rank, world_size, patience
        self.numbers: Counter[str] = Counter()  # calls so far on each communicator

    def record(self, event: Event) -> None:
        if event.kind == "issue":
            self._compare(event)

    def complete(self, work: Work, issued: tuple[Event, ...]) -> None:
        self.store.set(f"waiting/{self.rank}", " and ".join(map(describe, issued)))
        if not _completes(work, timedelta(seconds=self.patience)):
            raise TranscriptError(f"nothing moved for {self.patience:g} s: {self._waiting()}")
        self.store.set(f"waiting/{self.rank}", f"nothing, its last wait was for {describe(issued[0])}")

    def _compare(self, event: Event) -> None:
        communicator = f"{event.axis} {event.group}"
        number = self.numbers[communicator]
        self.numbers[communicator] += 1
        key = f"{communicator}/{number}"
        paired = event.batch is None and event.operation in OPPOSITE
        operation = min(event.operation, OPPOSITE[event.operation]) if paired else event.operation
        mine = f"{operation}|{event.site}|{event.bytes}|rank {self.rank} calls {describe(event)}"
        first = self.store.compare_set(key, "", mine).decode()
        if first.split("|")[:3] != mine.split("|")[:3]:
            theirs, ours = first.split("|")[3], mine.split("|")[3]
            raise TranscriptError(f"call {number} on communicator {communicator} differs: {theirs}, {ours}")
        if self.store.add(f"{key}/seen", 1) == len(event.group):
            self.store.delete_key(key)
            self.store.delete_key(f"{key}/seen")

    def _waiting(self) -> str:
        keys = [f"waiting/{rank}" for rank in range(self.world_size)]
        known = [(rank, key) for rank, key in enumerate(keys) if self.store.check([key])]
        return "; ".join(f"rank {rank} waits for {self.store.get(key).decode()}" for rank, key in known)


def describe(event: Event) -> str:
    """A call in words, for a message."""
    peer = "" if event.peer is None else f" with rank {event.peer}"
    return f"{event.operation} {event.site}{peer} ({event.axis}, {event.bytes:,} bytes, in {event.phase or 'no phase'})"


def _completes(work: Work, patience: timedelta) -> bool:
    """Wait at most so long; gloo tells a timeout from other failures by its message alone."""
    try:
        work.wait(patience)
    except RuntimeError as error:
        if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
            raise
        return False
    return True
