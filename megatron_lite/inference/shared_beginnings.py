"""Which tokens go through the model to tell what continuations are worth, each beginning of a text once. Plain numbers.

Texts in alphabetical order are the walk over a tree: each shares a beginning with the one before it, and the rest of it
is new. The way from the root to where the walk stands is kept in the cache, and so is what a step has computed until it
is done; all else is free for new tokens. So a cache for one longest text and one step suffices, however many there are.

    Paris is the capital of | France         computed: 6 tokens of the first text, 1 of the second,
                            | Texas          and its rest of the third, which may come with the next step
    Paris is a              | city
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron_lite.inference.scheduler import Row


@dataclass(frozen=True)
class Question:
    """What the tokens of `continuation` are worth after `context`; either has one or more."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What goes through the model: all but the last token, after which nothing is asked."""
        return (self.context + self.continuation)[:-1]


@dataclass(frozen=True)
class Look:
    """After the new token at `place` of a step: what `label` is worth, as the question's token `number`."""

    place: int
    label: int
    question: int
    number: int


@dataclass
class Step:
    """One forward pass, and where it is looked at."""

    rows: list[Row] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    tokens: int = 0


def in_order(questions: Sequence[Question]) -> list[int]:
    """Their numbers, with those side by side that begin alike."""
    return sorted(range(len(questions)), key=lambda number: questions[number].read)


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def positions_for(longest: int, budget: int) -> int:
    """Of a cache for texts of so many positions and steps of so many new tokens."""
    return longest + budget


def steps(questions: Sequence[Question], longest: int, budget: int) -> Iterator[Step]:
    """All of them, of at most `budget` new tokens and looks each, beside a cache of blocks of one position. No text may
    have more than `longest` positions.
    """
    walk = _Walk(positions_for(longest, budget), budget)
    for number in in_order(questions):
        yield from walk.visit(number, questions[number])
    if walk.step.rows:
        yield walk.step


class _Walk:
    """Where it stands: the way's tokens, their slots, and the place of each in the step, None of one before it."""

    def __init__(self, positions: int, budget: int):
        self.positions, self.budget = positions, budget
        self.way: list[int] = []
        self.slots: list[int] = []
        self.places: list[int | None] = []
        self._begin()

    def _begin(self) -> None:
        """The next step: what the last one computed off the way is free."""
        self.step = Step()
        taken = set(self.slots)
        self.free = [slot for slot in reversed(range(self.positions)) if slot not in taken]
        self.places = [None] * len(self.places)

    def visit(self, number: int, question: Question) -> Iterator[Step]:
        """One more text; the steps that are full with it."""
        text, first = question.read, len(question.context) - 1  # after which the first of its labels is looked for
        labels = len(question.continuation)
        shared = alike(text, self.way)
        if labels > self.budget - len(self.step.looks) and self.step.rows:
            yield self._full()
        if None in self.places[first:shared]:  # an earlier step had them, and was not looked at for this question
            shared = first
        self._cut(shared)
        self._look(number, question, first, shared)
        while shared < len(text):
            if self.step.tokens == self.budget or len(self.step.looks) >= self.budget:
                yield self._full()
            count = min(len(text) - shared, self.budget - self.step.tokens)
            self._go(text[shared : shared + count])
            self._look(number, question, max(first, shared), shared + count)
            shared += count

    def _full(self) -> Step:
        step = self.step
        self._begin()
        return step

    def _cut(self, count: int) -> None:
        for part in (self.way, self.slots, self.places):
            del part[count:]

    def _go(self, tokens: Sequence[int]) -> None:
        """One row of new tokens."""
        start, count = len(self.way), len(tokens)
        self.way += tokens
        self.slots += [self.free.pop() for _ in range(count)]
        self.places += range(self.step.tokens, self.step.tokens + count)
        name = len(self.step.rows)
        self.step.rows.append(Row(name, tuple(tokens), start, tuple(self.slots[start:]), tuple(self.slots), False))
        self.step.tokens += count

    def _look(self, number: int, question: Question, begin: int, end: int) -> None:
        """After these positions of the way, all of which are in the step."""
        first = len(question.context) - 1
        for position in range(begin, end):
            place = self.places[position]
            assert place is not None
            label = question.continuation[position - first]
            self.step.looks.append(Look(place, label, number, position - first))
