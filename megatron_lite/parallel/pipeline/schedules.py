"""Pipeline schedules as data: pure functions from (stages, chunks, microbatches) to the actions of every stage.

Published closed forms of the idle time stand in the docstrings, F, I and W being an action's time, B = I + W. They hold
if all stages take the same time, messages take none, and the step ends for all at once (a global clip of the gradient
norm comes before any update); each names its further conditions.

A new schedule is one function here and one line in `SCHEDULES`. The checker proves it before the first step of so many
microbatches, the executor runs it, the simulator times it, the drawing shows it; none of them knows a schedule by name.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["F", "B", "I", "W"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Action:
    """One step of one stage: F forward, B whole backward, I backward for the input, W backward for the weights.

    I and W together do the work of B. `chunk` tells several virtual stages on one stage apart.
    """

    kind: Kind
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}" + (f".{self.chunk}" if self.chunk else "")


@dataclass(frozen=True)
class Placement:
    """Which virtual stage, a run of the model's layers, lies where: they go round the stages, chunk after chunk, or
    down and up in a V.

    round, 3 stages x 2 chunks   0 1 2 | 3 4 5     vee   0 1 2 | 5 4 3     virtual stages of stage 0, 1, 2 by chunk
    """

    stages: int
    chunks: int = 1
    order: Literal["round", "vee"] = "round"

    def virtual_stage(self, stage: int, chunk: int) -> int:
        """Its number, counted from the model's beginning."""
        back = self.order == "vee" and chunk % 2 == 1
        return chunk * self.stages + (self.stages - 1 - stage if back else stage)

    def place(self, virtual_stage: int) -> tuple[int, int] | None:
        """(stage, chunk) of a virtual stage, None before the first and after the last."""
        if not 0 <= virtual_stage < self.stages * self.chunks:
            return None
        chunk, along = divmod(virtual_stage, self.stages)
        back = self.order == "vee" and chunk % 2 == 1
        return (self.stages - 1 - along if back else along), chunk

    @property
    def ends(self) -> tuple[int, int]:
        """The stages where the model begins and ends."""
        first, last = self.place(0), self.place(self.stages * self.chunks - 1)
        assert first is not None and last is not None  # no pipeline is without one
        return first[0], last[0]

    def before(self, stage: int, chunk: int) -> tuple[int, int] | None:
        """Where the activations of a chunk come from."""
        return self.place(self.virtual_stage(stage, chunk) - 1)

    def after(self, stage: int, chunk: int) -> tuple[int, int] | None:
        """Where they go."""
        return self.place(self.virtual_stage(stage, chunk) + 1)


@dataclass(frozen=True)
class Schedule:
    """The actions of each stage in program order, by rank on the pipeline axis, and where virtual stages lie."""

    actions: tuple[tuple[Action, ...], ...]
    placement: Placement


def gpipe(stages: int, chunks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965, section 2.3).

    Three stages, four microbatches, backward as long as forward (digits: forward; letters: backward of 0, 1, ...):

        stage 0  0 1 2 3 . . . . a b c d
        stage 1  . 0 1 2 3 . . a b c d .
        stage 2  . . 0 1 2 3 a b c d . .
                 time ->

    Each stage idles (stages - 1)(F + B), a share (stages - 1) / microbatches of its work. Peak of live activations:
    microbatches, on every stage. Raises ValueError if chunks is not 1 or another argument is below 1.
    """
    _check_arguments("gpipe", stages, chunks, microbatches, right_chunks=1)
    forwards = tuple(Action("F", m) for m in range(microbatches))
    backwards = tuple(Action("B", m) for m in range(microbatches))
    return Schedule((forwards + backwards,) * stages, Placement(stages))


def one_f_one_b(stages: int, chunks: int, microbatches: int) -> Schedule:
    """1F1B with a flush at the end of the step (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1).

    Three stages, four microbatches, backward as long as forward (digits: forward; letters: backward of 0, 1, ...):

        stage 0  0 1 2 . . a 3 b . c . d
        stage 1  . 0 1 . a 2 b 3 c . d .
        stage 2  . . 0 a 1 b 2 c 3 d . .
                 time ->

    A stage runs just enough forwards to keep the stages after it busy, then backward and forward in turn. Each stage
    idles (stages - 1)(F + B), a share (stages - 1) / microbatches of its work. Peak of live activations on stage s:
    min(stages - s, microbatches). With several chunks a stage it is `interleaved_1f1b`. Raises ValueError for an
    argument below 1.
    """
    if chunks > 1:
        return interleaved_1f1b(stages, chunks, microbatches)
    _check_arguments("1f1b", stages, chunks, microbatches, right_chunks=1)
    rows = []
    for stage in range(stages):
        forwards = [Action("F", m) for m in range(microbatches)]
        backwards = [Action("B", m) for m in range(microbatches)]
        rows.append(_in_turn(forwards, backwards, warmup=stages - stage - 1))
    return Schedule(tuple(rows), Placement(stages))


def interleaved_1f1b(stages: int, chunks: int, microbatches: int) -> Schedule:
    """1F1B over several chunks a stage (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.2).

    Microbatches pass in groups of `stages`: a stage runs a group through its first chunk, then through its second, and
    so on; backwards through the chunks in reverse. Three stages, two chunks, three microbatches:

        stage 0  F0 F1 F2 F0.1 F1.1 F2.1 B0.1 B1.1 B2.1 B0 B1 B2
        stage 1  F0 F1 F2 F0.1 F1.1 F2.1 B0.1 B1.1 B2.1 B0 B1 B2
        stage 2  F0 F1 F2 F0.1 B0.1 F1.1 B1.1 F2.1 B2.1 B0 B1 B2

    F and B being a whole stage's, each stage idles (stages - 1)(F + B) / chunks, a share (stages - 1) / (chunks x
    microbatches) of its work. Peak of live activations on stage s, in chunks: (chunks - 1) stages + 2 (stages - s) - 1,
    at most chunks x microbatches. Raises ValueError if chunks is below 2 or stages do not divide microbatches.
    """
    _check_arguments("interleaved_1f1b", stages, chunks, microbatches)
    if chunks < 2:
        raise ValueError(f"chunks is {chunks}; schedule interleaved_1f1b needs at least 2 chunks a stage")
    if microbatches % stages:
        raise ValueError(
            f"microbatches is {microbatches}; schedule interleaved_1f1b passes them in groups of stages, so it "
            f"must be a multiple of {stages}"
        )
    passes = [
        (group * stages + member, chunk)
        for group in range(microbatches // stages)
        for chunk in range(chunks)
        for member in range(stages)
    ]
    forwards = [Action("F", m, chunk) for m, chunk in passes]
    backwards = [Action("B", m, chunks - 1 - chunk) for m, chunk in passes]
    rows = [
        _in_turn(forwards, backwards, warmup=2 * (stages - stage - 1) + (chunks - 1) * stages)
        for stage in range(stages)
    ]
    return Schedule(tuple(rows), Placement(stages, chunks))


def zb_h1(stages: int, chunks: int, microbatches: int) -> Schedule:
    """Zero-bubble H1: 1F1B whose weight gradients fill the bubble, in 1F1B's memory (Qi et al. 2023, arXiv 2401.10241,
    section 2.2).

    Stage s runs W of microbatch m right after I of microbatch m + s: the later a stage, the more it puts off to send
    its gradients sooner. Three stages, four microbatches:

        stage 0  F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3
        stage 1  F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
        stage 2  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3

    Each stage idles (stages - 1)(F + I - W) if W is at most F and at most I and microbatches at least stages; the
    paper's step is shorter by updating before the gradient norm is known. Peak of live activations:
    min(stages, microbatches) on every stage. Raises ValueError if chunks is not 1 or another argument is below 1.
    """
    _check_arguments("zb_h1", stages, chunks, microbatches, right_chunks=1)
    rows = []
    for stage, actions in enumerate(one_f_one_b(stages, 1, microbatches).actions):
        row: list[Action] = []
        for action in actions:
            if action.kind == "F":
                row.append(action)
                continue
            row.append(Action("I", action.microbatch))
            if action.microbatch >= stage:
                row.append(Action("W", action.microbatch - stage))
        row += [Action("W", m) for m in range(max(microbatches - stage, 0), microbatches)]
        rows.append(tuple(row))
    return Schedule(tuple(rows), Placement(stages))


def zb_v(stages: int, chunks: int, microbatches: int) -> Schedule:
    """Zero-bubble V: two chunks a stage, placed down and up again (Qi et al. 2023, arXiv 2401.10241, section 6).

    The last virtual stage lies beside the first, so gradients start where activations start. Forwards of both chunks
    first, more of the first chunk the earlier the stage; then one of each action in turn; weight gradients put off at
    the end, so that input gradients reach every stage in time. Two stages, four microbatches:

        stage 0  F0 F1 F2 F0.1 I0.1 W0.1 F1.1 I1.1 W1.1 F3 I0 W0 F2.1 I2.1 W2.1 I1 W1 F3.1 I3.1 W3.1 I2 W2 I3 W3
        stage 1  F0 F0.1 F1 F1.1 I0.1 W0.1 F2 I0 W0 F2.1 I1.1 W1.1 F3 I1 W1 F3.1 I2.1 W2.1 I2 I3.1 I3 W2 W3.1 W3

    If F = I = W, times of one chunk, each stage idles (stages - 1) F for microbatches at least 2 stages - 1: what its
    first activations and the end of the others leave it. Peak of live activations: min(2 stages, 2 microbatches) chunks
    on every stage, 1F1B's on its first. Raises ValueError if chunks is not 2 or another argument is below 1.
    """
    _check_arguments("zb_v", stages, chunks, microbatches, right_chunks=2)
    rows = tuple(tuple(_vee_row(stages, stage, microbatches)) for stage in range(stages))
    return Schedule(rows, Placement(stages, 2, order="vee"))


def _vee_row(stages: int, stage: int, microbatches: int) -> list[Action]:
    row: list[Action] = []
    count: Counter[str] = Counter()
    named = {f"{kind}{chunk}": (kind, chunk) for kind in KINDS for chunk in (0, 1)}

    def run(actions: str, times: int = 1) -> None:
        """Each named kind and chunk on its next microbatch. With few microbatches the phases run past the last."""
        for name in actions.split() * times:
            if count[name] < microbatches:
                kind, chunk = named[name]
                row.append(Action(kind, count[name], chunk))
            count[name] += 1

    most = max(2 * stages - 1, microbatches)
    run("F0", 2 * (stages - stage) - 1)
    run("F1 F0", stage)
    run("F1 I1 W1", stages - stage)
    while count["F1"] < most:
        run("F0 I0 W0 F1 I1 W1" if count["F0"] < most else "I0 W0 F1 I1 W1")
    run("I0 I1", stage)
    run("I0 W0", stages - stage)
    run("W1", most - count["W1"])
    run("W0", most - count["W0"])
    return row


SCHEDULES: dict[str, Callable[[int, int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved_1f1b": interleaved_1f1b,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
}


def split_backward(schedule: Schedule, delay: int) -> Schedule:
    """Replace each B by an I in its place and a W at most `delay` actions later (Qi et al. 2023, arXiv 2401.10241).

    The delay counts the stage's forward and input-gradient actions between I and W: 0 puts W right after its I. W's
    keep the order of their I's, and those still due when a stage has nothing else to do come at its end.

    1F1B on stage 1 of 3 with delay 2:  F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3

    An activation lives until its W, so the peak grows; for 1F1B to min(stages - s + ceil(delay / 2), microbatches).
    Raises ValueError if delay is negative.
    """
    if delay < 0:
        raise ValueError(f"delay is {delay}; it counts actions and must be at least 0")
    return Schedule(tuple(_split_stage(actions, delay) for actions in schedule.actions), schedule.placement)


def _split_stage(actions: tuple[Action, ...], delay: int) -> tuple[Action, ...]:
    split: list[Action] = []
    due: deque[tuple[int, Action]] = deque()  # (position in `actions` after which it runs, W)
    for position, action in enumerate(actions):
        if action.kind == "B":
            split.append(Action("I", action.microbatch, action.chunk))
            due.append((position + delay, Action("W", action.microbatch, action.chunk)))
        else:
            split.append(action)
        while due and due[0][0] <= position:
            split.append(due.popleft()[1])
    return (*split, *(weight for _, weight in due))


def _in_turn(forwards: Sequence[Action], backwards: Sequence[Action], warmup: int) -> tuple[Action, ...]:
    """`warmup` forwards, then forward and backward in turn, then the backwards left over."""
    warmup = min(warmup, len(forwards))
    turns = [action for pair in zip(forwards[warmup:], backwards, strict=False) for action in pair]
    return (*forwards[:warmup], *turns, *backwards[len(forwards) - warmup :])


def _check_arguments(name: str, stages: int, chunks: int, microbatches: int, right_chunks: int | None = None) -> None:
    if right_chunks is not None and chunks != right_chunks:
        raise ValueError(f"chunks is {chunks}; schedule {name} has {right_chunks} a stage, so chunks must be that")
    for argument, value in (("stages", stages), ("microbatches", microbatches)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; schedule {name} needs at least 1")
