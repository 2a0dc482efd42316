"""Where an action's input comes from and its result goes.

F hands its output to the virtual stage after its own, B or I its input gradient to the one before; W hands on nothing.
A channel is one direction between two stages.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_lite.parallel.pipeline.schedules import Action, Kind, Placement

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, order=True)
class Channel:
    """One direction between two stages: forward carries activations, backward gradients."""

    direction: Direction
    sender: int
    receiver: int

    @property
    def name(self) -> str:
        """Tells it apart from the others between the same two stages."""
        return f"pipeline.{self.direction}.{'down' if self.sender < self.receiver else 'up'}"


@dataclass(frozen=True, slots=True)
class Key:
    """The result of F (forward), or of B or I (backward), of one virtual stage on one microbatch."""

    direction: Direction
    stage: int
    chunk: int
    microbatch: int


def direction_of(action: Action) -> Direction:
    """Of what an action takes and hands on; W does neither."""
    return "forward" if action.kind == "F" else "backward"


def result_of(action: Action, stage: int) -> Key:
    """What other virtual stages know an action's result by."""
    return Key(direction_of(action), stage, action.chunk, action.microbatch)


def needed_by(action: Action, placement: Placement, stage: int) -> Key | None:
    """The result that an action takes as its input; None at the model's ends and for W."""
    place = _neighbour(action, placement, stage, upstream=True)
    return None if place is None else Key(direction_of(action), *place, action.microbatch)


def received_on(action: Action, placement: Placement, stage: int) -> Channel | None:
    """The channel that brings an action's input; None where it is at hand or there is none."""
    place = _neighbour(action, placement, stage, upstream=True)
    return None if place is None or place[0] == stage else Channel(direction_of(action), place[0], stage)


def stays(action: Action, placement: Placement, stage: int) -> bool:
    """Whether another virtual stage on the same stage takes the action's result."""
    place = _neighbour(action, placement, stage, upstream=False)
    return place is not None and place[0] == stage


def sent_on(action: Action, placement: Placement, stage: int) -> Channel | None:
    """The channel that takes an action's result to another stage; None where it stays or nobody takes it."""
    place = _neighbour(action, placement, stage, upstream=False)
    return None if place is None or place[0] == stage else Channel(direction_of(action), stage, place[0])


def channels_of(placement: Placement) -> list[Channel]:
    """Every channel of a pipeline, in order."""
    kinds: tuple[Kind, ...] = ("F", "B")
    actions = [(stage, Action(kind, 0, chunk)) for stage in range(placement.stages)
               for chunk in range(placement.chunks) for kind in kinds]  # fmt: skip
    return sorted({c for stage, action in actions if (c := sent_on(action, placement, stage)) is not None})


def _neighbour(action: Action, placement: Placement, stage: int, upstream: bool) -> tuple[int, int] | None:
    """(stage, chunk) of the virtual stage that an action takes from, or hands to."""
    if action.kind == "W":
        return None
    before = upstream == (action.kind == "F")  # activations come from the virtual stage before, gradients go to it
    return (placement.before if before else placement.after)(stage, action.chunk)
