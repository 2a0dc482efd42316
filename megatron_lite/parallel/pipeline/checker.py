"""Proof that a schedule is complete, ordered and free of deadlock, and its peak of live activations.

What travels on a channel (routes.py) arrives in the order it was sent.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_lite.errors import MegatronLiteError
from megatron_lite.parallel.pipeline.routes import Channel, Key, needed_by, received_on, result_of, sent_on
from megatron_lite.parallel.pipeline.schedules import KINDS, Action, Kind, Placement, Schedule


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


def check(schedule: Schedule, microbatches: int) -> Check:
    """Prove that every stage can run its actions to the end, whatever the speed of stages and messages.

    Shown are: each microbatch has F once and B, or I and W, once per stage and chunk; F comes before B or I, I before
    W; the actions can be run with sends that never wait; each channel's sends and receives come in one order; and the
    actions can be run where a message stays with its sender until the receiver reaches the action that takes it and
    a channel holds one message at a time (NCCL's rule, and the least memory for messages).
    Raises ScheduleError with one line that names the first thing wrong.
    """
    for stage, actions in enumerate(schedule.actions):
        _check_complete(stage, actions, schedule.placement.chunks, microbatches)
        _check_ordered(stage, actions)
    deque(execution_order(schedule), maxlen=0)
    channels = _channels(schedule)
    for channel, (sends, receives) in channels.items():
        _check_fifo(channel, sends, receives)
    deque(execution_order(schedule, unreceived_sends=1), maxlen=0)
    return Check(
        peak_live=tuple(_peak_live(actions) for actions in schedule.actions),
        messages=sum(len(sends) for sends, _ in channels.values()),
    )


class _Run:
    """One run of a schedule in the checker's head: where every stage stands and what has been sent."""

    def __init__(self, schedule: Schedule, unreceived_sends: int | None):
        self.actions, self.placement, self.limit = schedule.actions, schedule.placement, unreceived_sends
        self.cursor = [0] * len(schedule.actions)
        self.computed = [False] * len(schedule.actions)  # the action at the cursor has run; only its send is left
        self.results: set[Key] = set()
        self.in_flight: Counter[Channel] = Counter()

    def current(self, stage: int) -> Action | None:
        actions = self.actions[stage]
        return actions[self.cursor[stage]] if self.cursor[stage] < len(actions) else None

    def compute(self, stage: int, action: Action) -> bool:
        """Take the action's input and run it; False while the input has not come."""
        needed = needed_by(action, self.placement, stage)
        if needed is not None and needed not in self.results:
            return False
        if (channel := received_on(action, self.placement, stage)) is not None:
            self.in_flight[channel] -= 1
        return True

    def send(self, stage: int, action: Action) -> bool:
        """Hand the action's result on; False while the channel is full."""
        channel = sent_on(action, self.placement, stage)
        if channel is not None:
            if self.limit is not None and self.in_flight[channel] >= self.limit:
                return False
            self.in_flight[channel] += 1
        if action.kind != "W":
            self.results.add(result_of(action, stage))
        return True

    def describe(self, stage: int, action: Action) -> str:
        """What the stage waits for at its current action."""
        channel = sent_on(action, self.placement, stage) if self.computed[stage] else None
        if channel is not None:
            return f"stage {stage} at {action} waits for stage {channel.receiver} to receive what it sent before"
        needed = needed_by(action, self.placement, stage)
        assert needed is not None  # what needs and sends nothing does not wait
        source = Action("F" if needed.direction == "forward" else "B", needed.microbatch, needed.chunk)
        return f"stage {stage} at {action} waits for {source} of stage {needed.stage}"


def execution_order(schedule: Schedule, unreceived_sends: int | None = None) -> Iterator[tuple[int, Action]]:
    """Yield (stage, action) in one order in which the stages can run, each stage in its own order.

    `unreceived_sends` is how many messages a channel holds that its receiver has not taken yet; a sender waits after
    that. None stands for sends that never wait. Raises ScheduleError when stages wait for each other for ever.
    """
    run = _Run(schedule, unreceived_sends)
    stages = len(schedule.actions)
    partners = [_partners(schedule.placement, stage) for stage in range(stages)]
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
            wake += partners[stage]
    stuck = [run.describe(s, action) for s in range(stages) if (action := run.current(s)) is not None]
    if stuck:
        sends = "sends that never wait" if unreceived_sends is None else "sends that wait for their receive"
        more = f"; and {len(stuck) - 4} more stages" if len(stuck) > 4 else ""
        raise ScheduleError(f"deadlock with {sends}: " + "; ".join(stuck[:4]) + more)


def _partners(placement: Placement, stage: int) -> set[int]:
    """The stages that a stage exchanges messages with."""
    ways = (placement.before, placement.after)
    places = [way(stage, chunk) for chunk in range(placement.chunks) for way in ways]
    return {place[0] for place in places if place is not None} - {stage}


def _check_complete(stage: int, actions: tuple[Action, ...], chunks: int, microbatches: int) -> None:
    counts = Counter((a.kind, a.chunk, a.microbatch) for a in actions)
    for kind, chunk, microbatch in counts:
        if kind not in KINDS:
            raise ScheduleError(f"stage {stage}: action kind {kind!r} is none of F, B, I, W")
        if not (0 <= chunk < chunks and 0 <= microbatch < microbatches):
            raise ScheduleError(
                f"stage {stage}: {Action(kind, microbatch, chunk)} is outside {microbatches} microbatches "
                f"and {chunks} chunks"
            )
    for chunk in range(chunks):
        for microbatch in range(microbatches):
            found = {kind: counts[kind, chunk, microbatch] for kind in KINDS}
            backward = ("I", "W") if found["I"] or found["W"] else ("B",)
            for kind, times in found.items():
                needed = int(kind == "F" or kind in backward)
                if times != needed:
                    raise ScheduleError(
                        f"stage {stage}: {Action(kind, microbatch, chunk)} appears {times} times, must appear {needed} "
                        f"(each microbatch needs F and {' and '.join(backward)} once)"
                    )


def _check_ordered(stage: int, actions: tuple[Action, ...]) -> None:
    first_of: dict[Kind, Kind] = {"B": "F", "I": "F", "W": "I"}
    position = {(a.kind, a.chunk, a.microbatch): index for index, a in enumerate(actions)}
    for index, action in enumerate(actions):
        first = first_of.get(action.kind)
        if first and position[first, action.chunk, action.microbatch] > index:
            before = Action(first, action.microbatch, action.chunk)
            raise ScheduleError(f"stage {stage}: {action} comes before {before}")


def _channels(schedule: Schedule) -> dict[Channel, tuple[list[Key], list[Key]]]:
    """For each channel what is sent on it, in the sender's order and in the receiver's."""
    channels: dict[Channel, tuple[list[Key], list[Key]]] = {}
    for stage, actions in enumerate(schedule.actions):
        for action in actions:
            if (channel := sent_on(action, schedule.placement, stage)) is not None:
                channels.setdefault(channel, ([], []))[0].append(result_of(action, stage))
            needed = needed_by(action, schedule.placement, stage)
            if needed is not None and (channel := received_on(action, schedule.placement, stage)) is not None:
                channels.setdefault(channel, ([], []))[1].append(needed)
    return channels


def _check_fifo(channel: Channel, sends: list[Key], receives: list[Key]) -> None:
    for number, (sent, received) in enumerate(zip(sends, receives, strict=True)):
        if sent != received:
            raise ScheduleError(
                f"{channel.direction} messages from stage {channel.sender} to stage {channel.receiver}: "
                f"number {number} is sent for microbatch {sent.microbatch} (chunk {sent.chunk}) but received for "
                f"microbatch {received.microbatch} (chunk {received.chunk}); sends and receives must come in one order"
            )


def _peak_live(actions: tuple[Action, ...]) -> int:
    live = peak = 0
    for action in actions:
        live += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
        peak = max(peak, live)
    return peak
