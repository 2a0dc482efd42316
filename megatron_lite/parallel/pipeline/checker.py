"""Proof that a schedule is complete, ordered and free of deadlock, and its peak of live activations.

Messages: F sends its output to the piece of the model after it, B or I its input gradient to the piece before. A
channel is one direction between two neighbouring stages; what travels on it arrives in the order it was sent.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_lite.errors import MegatronLiteError
from megatron_lite.parallel.pipeline.schedules import Action, Schedule, downstream, upstream


class ScheduleError(MegatronLiteError):
    """A schedule that cannot be run; the message names the stage and the action."""


@dataclass(frozen=True)
class Check:
    """What a valid schedule was found to need.

    peak_live: for each stage the most (microbatch, chunk) pairs whose F has run and whose B or W has not.
    messages: activations and gradients that pass between different stages in one step.
    """

    peak_live: tuple[int, ...]
    messages: int


def check(schedule: Schedule, chunks: int, microbatches: int) -> Check:
    """Prove that every stage can run its actions to the end, whatever the speed of stages and messages.

    Shown are: each microbatch has F once and B, or I and W, once per stage and chunk; F comes before B or I, I before
    W; the actions can be run with sends that never wait; each channel's sends and receives come in one order; and the
    actions can be run where a message stays with its sender until the receiver reaches the action that takes it and
    a channel holds one message at a time (NCCL's rule, and the least memory for messages).
    Raises ScheduleError with one line that names the first thing wrong.
    """
    for stage, actions in enumerate(schedule):
        _check_complete(stage, actions, chunks, microbatches)
        _check_ordered(stage, actions)
    deque(execution_order(schedule, chunks), maxlen=0)
    channels = _channels(schedule, chunks)
    for channel, (sends, receives) in channels.items():
        _check_fifo(channel, sends, receives)
    deque(execution_order(schedule, chunks, unreceived_sends=1), maxlen=0)
    return Check(
        peak_live=tuple(_peak_live(actions) for actions in schedule),
        messages=sum(len(sends) for sends, _ in channels.values()),
    )


@dataclass(frozen=True)
class Channel:
    """One direction between two stages: "forward" carries activations, "backward" gradients."""

    direction: str
    sender: int
    receiver: int


def receives_from(action: Action, stages: int, chunks: int, stage: int) -> tuple[Channel | None, tuple | None]:
    """The channel that brings the action's input, and the key of the result it needs.

    The channel is None if the input is at hand on the same stage or the action needs none from elsewhere; the key
    (pass, stage, chunk, microbatch) is None if the action depends on no other piece of the model.
    """
    if action.kind == "W":
        return None, None
    forward = action.kind == "F"
    source = upstream(stages, stage, action.chunk) if forward else downstream(stages, chunks, stage, action.chunk)
    if source is None:
        return None, None
    direction = "forward" if forward else "backward"
    channel = Channel(direction, source[0], stage) if source[0] != stage else None
    return channel, (direction, *source, action.microbatch)


def sends_to(action: Action, stages: int, chunks: int, stage: int) -> Channel | None:
    """The channel that takes the action's result to another stage, None if it stays on this one."""
    if action.kind == "W":
        return None
    forward = action.kind == "F"
    target = downstream(stages, chunks, stage, action.chunk) if forward else upstream(stages, stage, action.chunk)
    if target is None or target[0] == stage:
        return None
    return Channel("forward" if forward else "backward", stage, target[0])


def result_key(action: Action, stage: int) -> tuple:
    """The key under which other pieces of the model wait for the action's result."""
    return ("forward" if action.kind == "F" else "backward", stage, action.chunk, action.microbatch)


class _Run:
    """One run of a schedule in the checker's head: where every stage stands and what has been sent."""

    def __init__(self, schedule: Schedule, chunks: int, unreceived_sends: int | None):
        self.schedule, self.chunks, self.limit = schedule, chunks, unreceived_sends
        self.cursor = [0] * len(schedule)
        self.computed = [False] * len(schedule)  # the action at the cursor has run; only its send is left
        self.results: set[tuple] = set()
        self.in_flight: Counter[Channel] = Counter()

    def current(self, stage: int) -> Action | None:
        actions = self.schedule[stage]
        return actions[self.cursor[stage]] if self.cursor[stage] < len(actions) else None

    def compute(self, stage: int, action: Action) -> bool:
        """Take the action's input and run it; False while the input has not come."""
        channel, needed = receives_from(action, len(self.schedule), self.chunks, stage)
        if needed is not None and needed not in self.results:
            return False
        if channel is not None:
            self.in_flight[channel] -= 1
        return True

    def send(self, stage: int, action: Action) -> bool:
        """Hand the action's result on; False while the channel is full."""
        channel = sends_to(action, len(self.schedule), self.chunks, stage)
        if channel is not None:
            if self.limit is not None and self.in_flight[channel] >= self.limit:
                return False
            self.in_flight[channel] += 1
        if action.kind != "W":
            self.results.add(result_key(action, stage))
        return True

    def describe(self, stage: int, action: Action) -> str:
        """What the stage waits for at its current action."""
        stages = len(self.schedule)
        if self.computed[stage]:
            channel = sends_to(action, stages, self.chunks, stage)
            return f"stage {stage} at {action} waits for stage {channel.receiver} to receive what it sent before"
        _, (direction, source, chunk, microbatch) = receives_from(action, stages, self.chunks, stage)
        source_action = Action("F" if direction == "forward" else "B", microbatch, chunk)
        return f"stage {stage} at {action} waits for {source_action} of stage {source}"


def execution_order(
    schedule: Schedule, chunks: int, unreceived_sends: int | None = None
) -> Iterator[tuple[int, Action]]:
    """Yield (stage, action) in one order in which the stages can run, each stage in its own order.

    `unreceived_sends` is how many messages a channel holds that its receiver has not taken yet; a sender waits after
    that. None stands for sends that never wait. Raises ScheduleError when stages wait for each other for ever.
    """
    run = _Run(schedule, chunks, unreceived_sends)
    stages = len(schedule)
    wake = deque(range(stages))
    while wake:
        stage = wake.popleft()
        moved = False
        while (action := run.current(stage)) is not None:
            if not run.computed[stage]:
                if not run.compute(stage, action):
                    break
                moved = run.computed[stage] = True
                yield stage, action
            if not run.send(stage, action):
                break
            run.computed[stage] = False
            run.cursor[stage] += 1
            moved = True
        if moved:
            wake += {(stage - 1) % stages, (stage + 1) % stages} - {stage}
    stuck = [run.describe(s, action) for s in range(stages) if (action := run.current(s)) is not None]
    if stuck:
        sends = "sends that never wait" if unreceived_sends is None else "sends that wait for their receive"
        more = f"; and {len(stuck) - 4} more stages" if len(stuck) > 4 else ""
        raise ScheduleError(f"deadlock with {sends}: " + "; ".join(stuck[:4]) + more)


def _check_complete(stage: int, actions: tuple[Action, ...], chunks: int, microbatches: int) -> None:
    counts = Counter((a.kind, a.chunk, a.microbatch) for a in actions)
    for kind, chunk, microbatch in counts:
        if kind not in ("F", "B", "I", "W"):
            raise ScheduleError(f"stage {stage}: action kind {kind!r} is none of F, B, I, W")
        if not (0 <= chunk < chunks and 0 <= microbatch < microbatches):
            raise ScheduleError(
                f"stage {stage}: {Action(kind, microbatch, chunk)} is outside {microbatches} microbatches "
                f"and {chunks} chunks"
            )
    for chunk in range(chunks):
        for microbatch in range(microbatches):
            found = {kind: counts[kind, chunk, microbatch] for kind in ("F", "B", "I", "W")}
            backward = ("I", "W") if found["I"] or found["W"] else ("B",)
            for kind, times in found.items():
                needed = int(kind == "F" or kind in backward)
                if times != needed:
                    raise ScheduleError(
                        f"stage {stage}: {Action(kind, microbatch, chunk)} appears {times} times, must appear {needed} "
                        f"(each microbatch needs F and {' and '.join(backward)} once)"
                    )


def _check_ordered(stage: int, actions: tuple[Action, ...]) -> None:
    position = {(a.kind, a.chunk, a.microbatch): index for index, a in enumerate(actions)}
    for index, action in enumerate(actions):
        first = {"B": "F", "I": "F", "W": "I"}.get(action.kind)
        if first and position[first, action.chunk, action.microbatch] > index:
            before = Action(first, action.microbatch, action.chunk)
            raise ScheduleError(f"stage {stage}: {action} comes before {before}")


def _channels(schedule: Schedule, chunks: int) -> dict[Channel, tuple[list[tuple], list[tuple]]]:
    """For each channel the keys of what is sent on it, in the sender's order and in the receiver's."""
    channels: dict[Channel, tuple[list[tuple], list[tuple]]] = {}
    for stage, actions in enumerate(schedule):
        for action in actions:
            if (channel := sends_to(action, len(schedule), chunks, stage)) is not None:
                channels.setdefault(channel, ([], []))[0].append(result_key(action, stage))
            channel, needed = receives_from(action, len(schedule), chunks, stage)
            if channel is not None:
                channels.setdefault(channel, ([], []))[1].append(needed)
    return channels


def _check_fifo(channel: Channel, sends: list[tuple], receives: list[tuple]) -> None:
    for number, (sent, received) in enumerate(zip(sends, receives, strict=True)):
        if sent != received:
            raise ScheduleError(
                f"{channel.direction} messages from stage {channel.sender} to stage {channel.receiver}: "
                f"number {number} is sent for microbatch {sent[3]} (chunk {sent[2]}) but received for "
                f"microbatch {received[3]} (chunk {received[2]}); sends and receives must come in one order"
            )


def _peak_live(actions: tuple[Action, ...]) -> int:
    live = peak = 0
    for action in actions:
        live += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        peak = max(peak, live)
    return peak
