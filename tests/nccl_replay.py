"""Replay recorded transcripts under NCCL's rules, which gloo forgives.

`replay` takes the events of every rank (see megatron_lite.parallel.collectives.Event) and raises ReplayError with one
line for the first fault, or returns. The rules:

- A communicator is (axis, group). Its operations start in issue order on each member; the next starts when the one
  before it is complete there. Different communicators do not hold each other up.
- A collective starts when every member has it at the head; operation, bytes and site must be equal on all of them.
- A send and its receive start when both ranks have them at the head. Operations of one `batch` (a group call) come to
  the head together and leave it together. An operation that has started completes.
- The first operation on a communicator, and the first message between two ranks of one, holds the rank's program until
  all of its members, or both ranks, are at theirs: NCCL makes connections then, with the host. A group call makes all
  that it needs. Else an issue never blocks the rank's program.
- A wait blocks it until the operation is complete.
- Each operation is waited for exactly once.

Not modelled: several communicators that compete for one device's resources.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from megatron_lite.parallel.collectives import Event

MESSAGES = ("send", "recv")
Communicator = tuple[str, tuple[int, ...]]
Connection = tuple[str, tuple[int, ...], frozenset[int]]  # of a communicator: the ranks that make it together


class ReplayError(AssertionError):
    """What would hang or go wrong on NCCL, in one line."""


def replay(transcripts: Sequence[Sequence[Event]]) -> None:
    """Run the transcripts (one a rank, in program order) to their end; ReplayError names the first fault."""
    for rank, events in enumerate(transcripts):
        _check_rank(rank, events, len(transcripts))
    _check_collectives(transcripts)
    _check_messages(transcripts)
    _Replay(transcripts).run()


def _text(event: Event) -> str:
    peer = "" if event.peer is None else f", peer {event.peer}"
    return f"{event.operation} {event.site} ({event.axis} {event.group}{peer}, {event.bytes} bytes)"


# What a rank's own transcript and the transcripts side by side must satisfy, whatever the timing.


def _check_rank(rank: int, events: Sequence[Event], world: int) -> None:
    """Every issue has its one wait, every group its rank, and no batch is interrupted."""
    issued: dict[int, Event] = {}
    waited: set[int] = set()
    batches: set[int] = set()
    previous: int | None = None
    for index, event in enumerate(events):
        at = f"rank {rank}, event {index}"
        if event.kind == "wait":
            if event.handle not in issued:
                raise ReplayError(f"{at}: waits for handle {event.handle}, which was never issued: {_text(event)}")
            if event.handle in waited:
                raise ReplayError(f"{at}: waits a second time for handle {event.handle}: {_text(event)}")
            waited.add(event.handle)
            previous = None
            continue
        if event.handle in issued:
            raise ReplayError(f"{at}: handle {event.handle} is issued a second time: {_text(event)}")
        if rank not in event.group or not all(0 <= member < world for member in event.group):
            raise ReplayError(f"{at}: rank {rank} of {world} has no place in the group of {_text(event)}")
        if event.operation in MESSAGES and (event.peer == rank or event.peer not in event.group):
            raise ReplayError(f"{at}: the peer is no other member of the group: {_text(event)}")
        if event.batch is not None and event.batch != previous:
            if event.batch in batches:
                raise ReplayError(f"{at}: batch {event.batch} is not issued in one go: {_text(event)}")
            batches.add(event.batch)
        issued[event.handle], previous = event, event.batch
    for handle in issued.keys() - waited:
        raise ReplayError(f"rank {rank}: missing wait for handle {handle}: {_text(issued[handle])}")


def _issues(events: Iterable[Event]) -> Iterable[tuple[int, Event]]:
    return ((index, event) for index, event in enumerate(events) if event.kind == "issue")


def _check_collectives(transcripts: Sequence[Sequence[Event]]) -> None:
    """The members of each communicator make the same collective calls in the same order."""
    calls: dict[Communicator, dict[int, list[tuple[int, Event]]]] = defaultdict(lambda: defaultdict(list))
    for rank, events in enumerate(transcripts):
        for index, event in _issues(events):
            if event.operation not in MESSAGES:
                calls[event.axis, event.group][rank].append((index, event))
    for (axis, group), by_rank in calls.items():
        longest = max(len(sequence) for sequence in by_rank.values())
        sequences = {rank: by_rank.get(rank, []) for rank in group}
        for number in range(longest):
            here = {rank: sequence[number] if number < len(sequence) else None for rank, sequence in sequences.items()}
            if len({call and (call[1].operation, call[1].bytes, call[1].site) for call in here.values()}) > 1:
                each = "; ".join(
                    f"rank {rank} " + (f"at event {call[0]} calls {_text(call[1])}" if call else "calls nothing more")
                    for rank, call in here.items()
                )
                raise ReplayError(f"ranks differ in collective order on {axis} {group}, call {number}: {each}")


def _check_messages(transcripts: Sequence[Sequence[Event]]) -> None:
    """On each communicator the messages from one rank to another are as many and as large as those received."""
    sides: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
    for rank, events in enumerate(transcripts):
        for index, event in _issues(events):
            if event.operation in MESSAGES:
                sending = event.operation == "send"
                route = (rank, event.peer) if sending else (event.peer, rank)
                sides[event.axis, event.group, *route][0 if sending else 1].append((index, event))
    for (axis, group, source, target), (sends, receives) in sides.items():
        where = f"on {axis} {group} from rank {source} to rank {target}"
        for number, ((sent_at, sent), (received_at, received)) in enumerate(zip(sends, receives, strict=False)):
            if sent.bytes != received.bytes:
                raise ReplayError(
                    f"size mismatch {where}, message {number}: "
                    f"{sent.site} at event {sent_at} sends {sent.bytes} bytes, "
                    f"{received.site} at event {received_at} receives {received.bytes} bytes"
                )
        if len(sends) != len(receives):
            index, extra = max(sends, receives, key=len)[min(len(sends), len(receives))]
            raise ReplayError(
                f"{len(sends)} sends but {len(receives)} receives {where}; "
                f"without a partner: {_text(extra)} at event {index}"
            )


# What depends on timing.


def _connections(rank: int, event: Event) -> Iterator[Connection]:
    """What has to be there before a rank's operation can begin: its communicator, and for a message the pair."""
    yield event.axis, event.group, frozenset(event.group)
    if event.operation in MESSAGES:
        yield event.axis, event.group, frozenset((rank, event.peer))


@dataclass(eq=False)
class _Operation:
    rank: int
    event: Event
    call: "_Call"
    complete: bool = False


@dataclass(eq=False)
class _Call:
    """One operation, or the operations of one batch on one communicator: they share a place in the queue."""

    operations: list[_Operation] = field(default_factory=list)


@dataclass
class _Replay:
    transcripts: Sequence[Sequence[Event]]
    cursor: list[int] = field(init=False)
    operations: list[dict[int, _Operation]] = field(init=False)  # of each rank, by handle
    queues: dict[tuple[Communicator, int], deque[_Call]] = field(default_factory=lambda: defaultdict(deque))
    gathering: dict[Communicator, list[_Operation]] = field(default_factory=lambda: defaultdict(list))
    partners: dict[tuple, deque[_Operation]] = field(default_factory=lambda: defaultdict(deque))
    at_head: deque[_Operation] = field(default_factory=deque)  # came to the head, not looked at yet
    connected: set[Connection] = field(default_factory=set)
    arrived: dict[Connection, set[int]] = field(default_factory=lambda: defaultdict(set))  # ranks held at a first use
    awake: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.cursor = [0] * len(self.transcripts)
        self.operations = [{} for _ in self.transcripts]

    def run(self) -> None:
        self.awake.extend(range(len(self.transcripts)))
        while self.awake:
            self._advance(self.awake.popleft())
            while self.at_head:
                self._start(self.at_head.popleft())
        stuck = [rank for rank, events in enumerate(self.transcripts) if self.cursor[rank] < len(events)]
        if stuck:
            lines = "; ".join(self._describe(rank) for rank in stuck[:8])
            more = f"; and {len(stuck) - 8} more ranks" if len(stuck) > 8 else ""
            raise ReplayError(f"deadlock: {lines}{more}")

    def _advance(self, rank: int) -> None:
        """Run the rank's program up to a wait or a first use that blocks it."""
        events = self.transcripts[rank]
        while self.cursor[rank] < len(events):
            event = events[self.cursor[rank]]
            if event.kind == "issue":
                if self._unconnected(rank):
                    return
                self._issue(rank)
            elif self.operations[rank][event.handle].complete:
                self.cursor[rank] += 1
            else:
                return

    def _issued_together(self, rank: int) -> Iterator[Event]:
        """The issue at the cursor, with the whole of its batch."""
        events, at = self.transcripts[rank], self.cursor[rank]
        batch = events[at].batch
        yield events[at]
        while batch is not None and (at := at + 1) < len(events):
            if events[at].kind != "issue" or events[at].batch != batch:
                return
            yield events[at]

    def _unconnected(self, rank: int) -> list[Connection]:
        """Connections that the issue at the cursor still lacks, after this rank has come to it; wakes those held."""
        together = self._issued_together(rank)
        needed = [c for event in together for c in _connections(rank, event) if c not in self.connected]
        for connection in needed:
            self.arrived[connection].add(rank)
            if self.arrived[connection] == connection[2]:
                self.connected.add(connection)
                self.awake.extend(self.arrived.pop(connection))
        return [connection for connection in needed if connection not in self.connected]

    def _issue(self, rank: int) -> None:
        """Queue the operation at the cursor, with the whole of its batch."""
        calls: dict[Communicator, _Call] = {}
        for event in list(self._issued_together(rank)):
            call = calls.setdefault((event.axis, event.group), _Call())
            operation = _Operation(rank, event, call)
            call.operations.append(operation)
            self.operations[rank][event.handle] = operation
            self.cursor[rank] += 1
        for communicator, call in calls.items():
            queue = self.queues[communicator, rank]
            queue.append(call)
            if len(queue) == 1:
                self.at_head.extend(call.operations)

    def _start(self, operation: _Operation) -> None:
        """Complete the operation with its partners if all of them are at the head, else leave it to be found."""
        event, rank = operation.event, operation.rank
        communicator = (event.axis, event.group)
        if event.operation not in MESSAGES:
            members = self.gathering[communicator]
            members.append(operation)
            if len(members) == len(event.group):
                del self.gathering[communicator]
                self._complete(members)
            return
        sending = event.operation == "send"
        route = (rank, event.peer) if sending else (event.peer, rank)
        if waiting := self.partners[communicator, route, not sending]:
            self._complete([operation, waiting.popleft()])
        else:
            self.partners[communicator, route, sending].append(operation)

    def _complete(self, operations: list[_Operation]) -> None:
        for operation in operations:
            operation.complete = True
            if all(other.complete for other in operation.call.operations):
                queue = self.queues[(operation.event.axis, operation.event.group), operation.rank]
                queue.popleft()
                if queue:
                    self.at_head.extend(queue[0].operations)
            self.awake.append(operation.rank)

    def _describe(self, rank: int) -> str:
        """Where the rank is stuck and what the operation it waits for lacks."""
        event = self.transcripts[rank][self.cursor[rank]]
        if event.kind == "issue":
            lacking = self._unconnected(rank)[0]
            absent = sorted(lacking[2] - self.arrived[lacking])
            at = f"rank {rank} at event {self.cursor[rank]}"
            return f"{at} is held by the first {_text(event)}, until ranks {absent} come to theirs"
        operation = self.operations[rank][event.handle]
        communicator = (event.axis, event.group)
        head = self.queues[communicator, rank][0]
        if operation.call is not head:
            blocker = next(other for other in head.operations if not other.complete)
            reason = f"which is behind {_text(blocker.event)}"
        elif event.operation in MESSAGES:
            partner = "receive" if event.operation == "send" else "send"
            reason = f"whose {partner} is not at the head on rank {event.peer}"
        else:
            there = {member.rank for member in self.gathering[communicator]}
            reason = f"which is not at the head on ranks {sorted(set(event.group) - there)}"
        return f"rank {rank} at event {self.cursor[rank]} waits for {_text(event)}, {reason}"
