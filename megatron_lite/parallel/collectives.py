"""Every message between ranks goes through this file, under the name of its call site.

A `Communicator` is one process group with the mesh axis it stands for. Each operation is issued asynchronously and
returns a `Handle`; `handle.wait()` gives the result. Overlap in the package comes from the distance between the two,
never from streams. A communicator of one rank answers at once and sends nothing.

With a `Recorder` attached, each issue and each wait becomes an `Event`. Bytes follow one convention: the payload is the
larger side of the operation: an all-gather's output, a reduce-scatter's input, else the tensor itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import wraps
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lite.parallel.labels import label

# The names changed after torch 2.11; this is the only place that knows.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Work(Protocol):
    """An operation under way, as torch.distributed gives it."""

    def wait(self, timeout: timedelta = ...) -> object: ...


@dataclass(frozen=True)
class Event:
    """One line of a rank's transcript."""

    kind: str  # issue | wait
    handle: int  # joins a wait to its issue; unique within a rank
    axis: str
    group: tuple[int, ...]  # global ranks of the communicator
    operation: str  # all_gather | reduce_scatter | all_reduce | all_to_all | send | recv
    site: str
    bytes: int
    peer: int | None = None  # global rank at the other end of a message
    batch: int | None = None  # operations issued as one NCCL group call share a number
    phase: str = ""


@dataclass
class Recorder:
    """The transcript of one rank. `phase` is set by whoever drives the step."""

    events: list[Event] = field(default_factory=list)
    phase: str = ""
    issued: int = 0

    def record(self, event: Event) -> None:
        self.events.append(event)

    def complete(self, work: Work, issued: tuple[Event, ...]) -> None:
        """Wait for an operation and write that down."""
        work.wait()
        for event in issued:
            self.record(replace(event, kind="wait", phase=self.phase))


class Handle:
    """An operation in flight; it keeps its buffers alive until it was waited for."""

    def __init__(
        self,
        work: Work | None,
        result: Tensor,
        source: Tensor | None = None,
        recorder: Recorder | None = None,
        issued: tuple[Event, ...] = (),
    ):
        self.work, self.result, self.source = work, result, source
        self.recorder, self.issued = recorder, issued
        self.site = ""  # of the call that returned it

    @property
    def buffers(self) -> list[Tensor]:
        """What the operation keeps alive."""
        return [tensor for tensor in (self.source, self.result) if tensor is not None]

    def wait(self) -> Tensor:
        """Return the result; the caller's stream (on a GPU) or thread (on a CPU) waits for it."""
        if self.work is not None:
            with label("wait", self.site):
                if self.recorder is None:
                    self.work.wait()
                else:
                    self.recorder.complete(self.work, self.issued)
            self.work = self.source = None
        return self.result


def ready(result: Tensor) -> Handle:
    """A handle whose result needed no communication."""
    return Handle(None, result)


def named(issue: Callable[..., Handle]) -> Callable[..., Handle]:
    """Give a trace the call's site, its last argument, as the name of what it takes and of the wait for it."""

    @wraps(issue)
    def call(communicator: "Communicator", *arguments: Any) -> Handle:
        if communicator.size == 1:
            return issue(communicator, *arguments)
        with label(arguments[-1]):
            handle = issue(communicator, *arguments)
        handle.site = arguments[-1]
        return handle

    return call


class Communicator:
    """One process group. `rank` is this process's index in it, `ranks` its members' global ranks."""

    def __init__(self, axis: str, ranks: tuple[int, ...], rank: int, group: dist.ProcessGroup | None = None,
                 recorder: Recorder | None = None):  # fmt: skip
        self.axis, self.ranks, self.rank, self.group, self.recorder = axis, ranks, rank, group, recorder
        self.size = len(ranks)

    @named
    def all_gather(self, shard: Tensor, site: str) -> Handle:
        """[n, ...] on each rank -> [size * n, ...], ranks in order along the first dimension."""
        if self.size == 1:
            return ready(shard)
        shard = shard.contiguous()
        full = shard.new_empty((self.size * shard.shape[0], *shard.shape[1:]))
        issued = self._issue("all_gather", site, full)
        return self._under_way(_all_gather(full, shard, group=self.group, async_op=True), full, shard, issued)

    @named
    def reduce_scatter(self, full: Tensor, site: str) -> Handle:
        """[size * n, ...] on each rank -> the sum's [n, ...] at this rank's place."""
        if self.size == 1:
            return ready(full)
        full = full.contiguous()
        shard = full.new_empty((full.shape[0] // self.size, *full.shape[1:]))
        issued = self._issue("reduce_scatter", site, full)
        return self._under_way(_reduce_scatter(shard, full, group=self.group, async_op=True), shard, full, issued)

    @named
    def all_reduce(self, tensor: Tensor, site: str) -> Handle:
        """Sum over the ranks, in place; `tensor` must be contiguous."""
        if self.size == 1:
            return ready(tensor)
        issued = self._issue("all_reduce", site, tensor)
        return self._under_way(dist.all_reduce(tensor, group=self.group, async_op=True), tensor, None, issued)

    @named
    def send(self, tensor: Tensor, peer: int, site: str) -> Handle:
        """To the member with index `peer`; the tensor must not change until the handle was waited for."""
        issued = self._issue("send", site, tensor, peer)
        return self._under_way(dist.isend(tensor, group=self.group, group_dst=peer), tensor, tensor, issued)

    @named
    def receive(self, buffer: Tensor, peer: int, site: str) -> Handle:
        """From the member with index `peer`, into `buffer`."""
        issued = self._issue("recv", site, buffer, peer)
        return self._under_way(dist.irecv(buffer, group=self.group, group_src=peer), buffer, None, issued)

    @named
    def all_to_all(self, parts: Tensor, site: str) -> Handle:
        """[size, ...]: part i goes to member i -> [size, ...]: part i came from member i."""
        if self.size == 1:
            return ready(parts)
        parts = parts.contiguous()
        arrived = torch.empty_like(parts)
        issued = self._issue("all_to_all", site, arrived)
        work = dist.all_to_all_single(arrived, parts, group=self.group, async_op=True)
        return self._under_way(work, arrived, parts, issued)

    @named
    def exchange(self, tensor: Tensor, to: int, source: int, site: str) -> Handle:
        """Send to member `to` while a tensor like it comes from member `source`.

        One group call, as opposing messages on one communicator have to be.
        """
        tensor = tensor.contiguous()
        buffer = torch.empty_like(tensor)
        both = [
            dist.P2POp(dist.isend, tensor, group=self.group, group_peer=to),
            dist.P2POp(dist.irecv, buffer, group=self.group, group_peer=source),
        ]
        batch = None if self.recorder is None else self.recorder.issued + 1
        issued = (*self._issue("send", site, tensor, to, batch), *self._issue("recv", site, buffer, source, batch))
        return self._under_way(_Several(dist.batch_isend_irecv(both)), buffer, tensor, issued)

    def _issue(self, operation: str, site: str, payload: Tensor, peer: int | None = None,
               batch: int | None = None) -> tuple[Event, ...]:  # fmt: skip
        """Write the call down before it is made: a recorder may refuse it while nothing has been sent."""
        if self.recorder is None:
            return ()
        self.recorder.issued += 1
        event = Event("issue", self.recorder.issued, self.axis, self.ranks, operation, site,
                      payload.numel() * payload.element_size(), None if peer is None else self.ranks[peer],
                      batch, self.recorder.phase)  # fmt: skip
        self.recorder.record(event)
        return (event,)

    def _under_way(self, work: Work | None, result: Tensor, source: Tensor | None, issued: tuple[Event, ...]) -> Handle:
        return Handle(work, result, source, self.recorder, issued)


@dataclass(frozen=True)
class _Several:
    """The works of one group call."""

    works: Sequence[Work]

    def wait(self, *timeout: timedelta) -> None:
        for work in self.works:
            work.wait(*timeout)


def default_store() -> dist.Store:
    """The key-value store through which the ranks met."""
    return dist.distributed_c10d._get_default_store()


def alone(rank: int) -> Communicator:
    """The communicator of a process that shares with nobody."""
    return Communicator("self", (rank,), 0)
