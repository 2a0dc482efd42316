"""Which new tokens of which sequences go through the model next, and where their keys and values go. Plain numbers.

    add -> waiting -> running -> leave        plan: one forward pass; drawn: what came of it; and again
              ^          |
              +----------+ gives way

First come, first served: each running sequence gets its next token in every step, and what is left of the step's budget
goes to prompts, in chunks where it does not suffice. Nobody is let in before the prompt ahead is done, so whose prompt
is not is the youngest that runs, and nobody's next token waits for it. When blocks run out, the youngest gives way: it
waits again, in front, with all its tokens, and is computed again later. The oldest never gives way, and any one
sequence fits into all blocks, so everyone has an end.

Blocks are found by what they will hold as soon as they are planned. Within a step each layer stores all new keys and
values before it attends, so that sequences which begin alike share even within the step that computes them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_lite.errors import UsageError
from megatron_lite.inference.blocks import NOTHING, Blocks


@dataclass(frozen=True)
class Sizes:
    """Of a running batch: `blocks` of `block` positions, sequences at once (`rows`), and the new tokens that a step
    computes at most (`budget`).

    Raises UsageError for sizes with which a sequence could stand still.
    """

    blocks: int
    block: int = 16
    rows: int = 64
    budget: int = 512

    def __post_init__(self) -> None:
        for name in ("blocks", "block", "rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.budget < self.rows:
            raise UsageError(f"budget = {self.budget}: must be at least rows = {self.rows}, a token for each")

    def blocks_of(self, positions: int) -> int:
        """Blocks that so many positions take."""
        return -(-positions // self.block)


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence; what comes before them is in the cache.

    start   position of the first of them
    slots   where their keys and values go: block * size + place in it
    table   the blocks of all positions up to the last of them
    draws   whether a token is drawn after the last of them; else more of the sequence is still to come
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    slots: tuple[int, ...]
    table: tuple[int, ...]
    draws: bool


@dataclass(frozen=True)
class Step:
    """One forward pass, and who gave way for it, the youngest first."""

    rows: tuple[Row, ...]
    gave_way: tuple[int, ...] = ()

    @property
    def drawing(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.draws)


@dataclass
class Totals:
    """Tokens that went through the model, prompt tokens that another sequence had computed already, and how often one
    gave way. What a sequence finds again of its own, after it gave way, was not saved.
    """

    computed: int = 0
    reused: int = 0
    gave_way: int = 0


@dataclass(eq=False)
class _Sequence:
    """`computed` of its tokens are in the cache, or will be after the step; `named` blocks of its table are known by
    their content, to the beginning with this number.
    """

    name: int
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    computed: int = 0
    named: int = 0
    beginning: int = NOTHING
    was_running: bool = False

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed


class Scheduler:
    """Of one running batch. The same calls give the same steps, everywhere."""

    def __init__(self, sizes: Sizes):
        self.sizes, self.blocks, self.totals = sizes, Blocks(sizes.blocks, sizes.block), Totals()
        self._waiting: deque[_Sequence] = deque()  # all of them came after those that run
        self._running: list[_Sequence] = []  # the oldest first
        self._sequences: dict[int, _Sequence] = {}

    @property
    def busy(self) -> bool:
        return bool(self._sequences)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, name: int, tokens: Sequence[int], longest: int) -> None:
        """A sequence, under a name of its own, that may grow to `longest` tokens before it leaves.

        Raises UsageError for one that the blocks cannot hold.
        """
        if self.sizes.blocks_of(longest) > self.sizes.blocks:
            raise UsageError(
                f"a sequence of {longest} tokens takes {self.sizes.blocks_of(longest)} blocks of {self.sizes.block}: "
                f"the cache has {self.sizes.blocks}"
            )
        sequence = _Sequence(name, list(tokens))
        self._sequences[name] = sequence
        self._waiting.append(sequence)

    def plan(self) -> Step:
        """The next step; what it draws must be told before the one after it."""
        rows: list[Row] = []
        gave_way: list[int] = []
        left = self.sizes.budget
        index = 0
        while index < len(self._running):  # it may get shorter, at its end
            sequence = self._running[index]
            index += 1
            count = min(sequence.pending, left)
            if self._make_room(sequence, count, gave_way):
                rows.append(self._row(sequence, count))
                left -= count
        # Who gave way is not let in again by what it made free.
        while not gave_way and left > 0 and (admitted := self._admitted()) is not None:
            count = min(admitted.pending, left)
            self._take(admitted, count)
            rows.append(self._row(admitted, count))
            left -= count
        return Step(tuple(rows), tuple(gave_way))

    def drawn(self, name: int, token: int) -> None:
        """The token that follows all others of a sequence."""
        self._sequences[name].tokens.append(token)

    def leave(self, name: int) -> None:
        """Between two steps; its full blocks are kept for those that begin alike."""
        sequence = self._sequences.pop(name)
        self.blocks.release(sequence.table)
        (self._running if sequence in self._running else self._waiting).remove(sequence)

    def _make_room(self, sequence: _Sequence, count: int, gave_way: list[int]) -> bool:
        """Blocks for so many more tokens, whoever younger has to give way; False where it is the youngest itself."""
        while self.blocks.available < self._lacking(sequence, count):
            youngest = self._running.pop()
            self._give_way(youngest)
            gave_way.append(youngest.name)
            if youngest is sequence:
                return False
        self._take(sequence, count)
        return True

    def _give_way(self, sequence: _Sequence) -> None:
        self.blocks.release(sequence.table)
        sequence.table = []
        self._waiting.appendleft(sequence)
        self.totals.gave_way += 1

    def _admitted(self) -> _Sequence | None:
        """The first that waits, if there is room for all its tokens, and for each that runs to grow by a block.

        At least its last token is computed, since something is to be drawn after it.
        """
        if not self._waiting or len(self._running) == self.sizes.rows:
            return None
        sequence = self._waiting[0]
        found, beginning = self.blocks.find(sequence.tokens, (len(sequence.tokens) - 1) // self.sizes.block)
        lacking = self.sizes.blocks_of(len(sequence.tokens)) - len(found)
        if lacking + len(self._running) > self.blocks.available - self.blocks.unused(found):
            return None
        self.blocks.share(found)
        sequence.table, sequence.named, sequence.beginning = found, len(found), beginning
        sequence.computed = len(found) * self.sizes.block
        self.totals.reused += 0 if sequence.was_running else sequence.computed
        sequence.was_running = True
        self._running.append(self._waiting.popleft())
        return sequence

    def _lacking(self, sequence: _Sequence, count: int) -> int:
        return self.sizes.blocks_of(sequence.computed + count) - len(sequence.table)

    def _take(self, sequence: _Sequence, count: int) -> None:
        sequence.table += [self.blocks.take() for _ in range(self._lacking(sequence, count))]

    def _row(self, sequence: _Sequence, count: int) -> Row:
        """Its next tokens, for which there is room."""
        assert count > 0  # a drawn token was not told
        start, size, table = sequence.computed, self.sizes.block, sequence.table
        sequence.computed += count
        for number in range(sequence.named, sequence.computed // size):
            tokens = sequence.tokens[number * size : (number + 1) * size]
            sequence.beginning = self.blocks.full(table[number], sequence.beginning, tokens)
            sequence.named += 1
        self.totals.computed += count
        places = range(start, sequence.computed)
        return Row(
            sequence.name, tuple(sequence.tokens[start : sequence.computed]), start,
            tuple(table[place // size] * size + place % size for place in places), tuple(table), not sequence.pending,
        )  # fmt: skip
