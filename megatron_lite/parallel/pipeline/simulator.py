"""When every action of a schedule starts and ends, given what each kind of action costs."""

from dataclasses import dataclass

from megatron_lite.parallel.pipeline.checker import execution_order
from megatron_lite.parallel.pipeline.routes import Key, needed_by, received_on, result_of
from megatron_lite.parallel.pipeline.schedules import Action, Schedule


@dataclass(frozen=True)
class Costs:
    """Time of one action on one stage, in any one unit; the same on every stage.

    A whole backward B takes backward_input + backward_weight. `message` passes between the end of an action and the
    earliest start of the action on another stage that takes its result; the sender does not wait for it.
    """

    forward: float = 1
    backward_input: float = 1
    backward_weight: float = 1
    message: float = 0

    def of(self, action: Action) -> float:
        """The time that the action takes."""
        return {
            "F": self.forward,
            "B": self.backward_input + self.backward_weight,
            "I": self.backward_input,
            "W": self.backward_weight,
        }[action.kind]


@dataclass(frozen=True, slots=True)
class Span:
    """An action with its start and end."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The spans of each stage in order of time; the step begins at 0.

    makespan: end of the last action of any stage. idle: for each stage, makespan less the time in its actions.
    """

    spans: tuple[tuple[Span, ...], ...]
    makespan: float
    idle: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Idle time of all stages as a share of their work, the (p - 1) / m of the closed forms."""
        return sum(self.idle) / (len(self.idle) * self.makespan - sum(self.idle))


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Run the schedule with sends that never wait; each action starts as soon as its stage and its input are ready.

    Exact for exact numbers: integer costs give integer times. Raises ScheduleError when the schedule deadlocks.
    """
    spans: list[list[Span]] = [[] for _ in schedule.actions]
    ended: dict[Key, float] = {}
    for stage, action in execution_order(schedule):
        start = spans[stage][-1].end if spans[stage] else 0
        if (needed := needed_by(action, schedule.placement, stage)) is not None:
            travels = received_on(action, schedule.placement, stage) is not None
            start = max(start, ended[needed] + (costs.message if travels else 0))
        span = Span(action, start, start + costs.of(action))
        spans[stage].append(span)
        if action.kind != "W":
            ended[result_of(action, stage)] = span.end
    makespan = max((row[-1].end for row in spans if row), default=0)
    idle = tuple(makespan - sum(span.end - span.start for span in row) for row in spans)
    return Timeline(tuple(tuple(row) for row in spans), makespan, idle)
