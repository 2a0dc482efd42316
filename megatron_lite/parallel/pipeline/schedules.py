"""Pipeline schedules as data: pure functions from (stages, chunks, microbatches) to the actions of every stage.

A new schedule is one function here and one line in `SCHEDULES`. The checker proves it, the executor runs it, the
simulator times it, the drawing shows it; none of them knows a schedule by name.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["F", "B", "I", "W"]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of one stage: F forward, B whole backward, I backward for the input, W backward for the weights.

    I and W together do the work of B. `chunk` tells several pieces of the model on one stage apart.
    """

    kind: Kind
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}" + (f".{self.chunk}" if self.chunk else "")


Schedule = tuple[tuple[Action, ...], ...]
"""The actions of each stage in program order; the index is the rank on the pipeline axis."""


def gpipe(stages: int, chunks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965, section 2.3).

    Three stages, four microbatches, backward as long as forward (digits: forward; letters: backward of 0, 1, ...):

        stage 0  0 1 2 3 . . . . a b c d
        stage 1  . 0 1 2 3 . . a b c d .
        stage 2  . . 0 1 2 3 a b c d . .
                 time ->

    Each stage idles (stages - 1)(F + B), a share (stages - 1) / microbatches of its work, if all stages take the same
    time and messages take none. Peak of live activations: microbatches, on every stage. Raises ValueError if chunks is
    not 1 or another argument is below 1.
    """
    _check_arguments("gpipe", stages, chunks, microbatches)
    forwards = tuple(Action("F", m) for m in range(microbatches))
    backwards = tuple(Action("B", m) for m in range(microbatches))
    return (forwards + backwards,) * stages


def one_f_one_b(stages: int, chunks: int, microbatches: int) -> Schedule:
    """1F1B with a flush at the end of the step (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1).

    Three stages, four microbatches, backward as long as forward (digits: forward; letters: backward of 0, 1, ...):

        stage 0  0 1 2 . . a 3 b . c . d
        stage 1  . 0 1 . a 2 b 3 c . d .
        stage 2  . . 0 a 1 b 2 c 3 d . .
                 time ->

    A stage runs just enough forwards to keep the stages after it busy, then backward and forward in turn. Each stage
    idles (stages - 1)(F + B), a share (stages - 1) / microbatches of its work, as with GPipe and under the same
    conditions. Peak of live activations on stage s: min(stages - s, microbatches), always. Raises ValueError if chunks
    is not 1 or another argument is below 1.
    """
    _check_arguments("1f1b", stages, chunks, microbatches)
    schedule = []
    for stage in range(stages):
        warmup = min(stages - stage - 1, microbatches)
        actions = [Action("F", m) for m in range(warmup)]
        for m in range(microbatches - warmup):
            actions += [Action("F", warmup + m), Action("B", m)]
        actions += [Action("B", m) for m in range(microbatches - warmup, microbatches)]
        schedule.append(tuple(actions))
    return tuple(schedule)


SCHEDULES: dict[str, Callable[[int, int, int], Schedule]] = {"gpipe": gpipe, "1f1b": one_f_one_b}


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
    return tuple(_split_stage(actions, delay) for actions in schedule)


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


def upstream(stages: int, stage: int, chunk: int) -> tuple[int, int] | None:
    """(stage, chunk) that holds the piece of the model before this one, None for the first.

    Chunk c of stage s is piece c * stages + s of the model: the pieces go round the stages, chunk after chunk.
    """
    if stage > 0:
        return stage - 1, chunk
    return (stages - 1, chunk - 1) if chunk > 0 else None


def downstream(stages: int, chunks: int, stage: int, chunk: int) -> tuple[int, int] | None:
    """(stage, chunk) that holds the piece of the model after this one, None for the last; see `upstream`."""
    if stage < stages - 1:
        return stage + 1, chunk
    return (0, chunk + 1) if chunk < chunks - 1 else None


def _check_arguments(name: str, stages: int, chunks: int, microbatches: int) -> None:
    if chunks != 1:
        raise ValueError(f"chunks is {chunks}; schedule {name} has one chunk a stage, so chunks must be 1")
    for argument, value in (("stages", stages), ("microbatches", microbatches)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; schedule {name} needs at least 1")
