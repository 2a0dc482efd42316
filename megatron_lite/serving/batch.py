"""The thread in which the model works. Requests come in through a queue and join before the next step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from megatron_lite.inference.requests import Request
from megatron_lite.parallel.words import Words
from megatron_lite.serving.leading import HEARTBEAT, Messages, Orders, Report, Share, one_reason

Hear = Callable[[Sequence[Report]], None]


@dataclass(frozen=True)
class _Leave:
    number: int


@dataclass(frozen=True)
class _End:
    pass


@dataclass
class Batch:
    """Of rank 0. `join`, `leave` and `end` may be called from any thread; `run` is the thread's own work. With nothing
    to do it tells the other ranks so every `heartbeat` seconds.
    """

    share: Share
    messages: Messages
    words: Words
    heartbeat: float = HEARTBEAT
    _inbox: SimpleQueue[Request | _Leave | _End] = field(default_factory=SimpleQueue)
    _unfinished: dict[int, int] = field(default_factory=dict)  # samples, by the request's number
    _turn: int = 0

    def join(self, request: Request) -> None:
        """One that `check_request` passes; its number must be new."""
        self._inbox.put(request)

    def leave(self, number: int) -> None:
        """A request that may have ended already."""
        self._inbox.put(_Leave(number))

    def end(self) -> None:
        """After the step that is under way."""
        self._inbox.put(_End())

    def run(self, hear: Hear) -> None:
        """Until the end; `hear` is told what each step gave."""
        with one_reason(self.words):
            while not (orders := self.messages.orders(self._orders())).last:
                reports = self.messages.reports(self.share.step(orders))
                self._count(reports)
                hear(reports)

    def _orders(self) -> Orders:
        """All that came in. Without a request that goes on, waits for something to come."""
        found = []
        if not self._unfinished:
            patience = self.heartbeat if self.words.size > 1 else None
            try:
                found.append(self._inbox.get(timeout=patience))
            except Empty:
                return Orders()
        while not self._inbox.empty():
            found.append(self._inbox.get())
        joining = [self._placed(one) for one in found if isinstance(one, Request)]
        leaving = [one.number for one in found if isinstance(one, _Leave)]
        return Orders(tuple(joining), tuple(leaving), any(isinstance(one, _End) for one in found))

    def _placed(self, request: Request) -> tuple[int, Request]:
        """Replicas take turns."""
        self._unfinished[request.number] = request.n
        replica = self._turn % self.share.engine.model.mesh.zero.size
        self._turn += 1
        return replica, request

    def _count(self, reports: Sequence[Report]) -> None:
        for report in reports:
            for addition in report.additions:
                if addition.finish is not None:
                    self._unfinished[addition.request] -= 1
                    if not self._unfinished[addition.request]:
                        del self._unfinished[addition.request]
