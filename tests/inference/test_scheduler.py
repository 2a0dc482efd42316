"""The scheduler without a model, through random histories, beside a memory that only remembers what was written where.

What a position's key holds depends on all tokens up to there, so in the memory a slot holds just these. A step is right
if after its writes each of its rows finds its own beginning in the blocks of its table.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.errors import UsageError
from megatron_lite.inference.blocks import Blocks
from megatron_lite.inference.scheduler import Row, Scheduler, Sizes, Step

LONGEST = 24
PATIENCE = 2000  # steps until everything that a history adds must be done


@dataclass
class Asked:
    prompt: tuple[int, ...]
    new: int  # tokens until it leaves


@dataclass
class Play:
    """A scheduler and what a model would do: the next token is a function of all before it."""

    sizes: Sizes
    scheduler: Scheduler = field(init=False)
    memory: dict[int, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[int, list[int]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.sizes)

    def add(self, name: int, asked: Asked) -> None:
        self.scheduler.add(name, asked.prompt, len(asked.prompt) + asked.new)
        self.texts[name], self.left[name] = list(asked.prompt), asked.new

    def step(self) -> Step:
        step = self.scheduler.plan()
        self.steps.append(step)
        check_step(step, self.sizes, self.texts)
        for row in step.rows:
            for i, slot in enumerate(row.slots):
                self.memory[slot] = tuple(self.texts[row.sequence][: row.start + i + 1])
        for row in step.rows:
            text = self.texts[row.sequence]
            assert [self.memory.get(slot) for slot in slots(row, self.sizes)] == [
                tuple(text[: position + 1]) for position in range(row.start + len(row.tokens))
            ]
        check_blocks(self.scheduler)
        for row in step.rows:
            if row.draws:
                self._draw(row.sequence)
        return step

    def leave(self, name: int) -> None:
        self.scheduler.leave(name)
        del self.left[name]
        check_blocks(self.scheduler)

    def _draw(self, name: int) -> None:
        token = following(self.texts[name])
        self.texts[name].append(token)
        self.scheduler.drawn(name, token)
        self.left[name] -= 1
        if not self.left[name]:
            self.leave(name)


def following(text: list[int]) -> int:
    return (sum(text) + len(text)) % 3


def slots(row: Row, sizes: Sizes) -> list[int]:
    """Of all its positions up to its last new one."""
    places = range(row.start + len(row.tokens))
    return [row.table[place // sizes.block] * sizes.block + place % sizes.block for place in places]


def check_step(step: Step, sizes: Sizes, texts: dict[int, list[int]]) -> None:
    assert step.rows and len(step.rows) <= sizes.rows
    assert sum(len(row.tokens) for row in step.rows) <= sizes.budget
    for row in step.rows:
        end = row.start + len(row.tokens)
        assert row.tokens and list(row.tokens) == texts[row.sequence][row.start : end]
        assert row.draws == (end == len(texts[row.sequence]))
        assert list(row.slots) == slots(row, sizes)[row.start :]
        assert len(set(row.table)) == len(row.table) == sizes.blocks_of(end)
    written = [slot for row in step.rows for slot in row.slots]
    assert len(set(written)) == len(written)


def check_blocks(scheduler: Scheduler) -> None:
    """Each block is free, kept or used, by as many as have it in their tables; nobody writes where another reads."""
    blocks = scheduler.blocks
    tables = [sequence.table for sequence in scheduler._sequences.values()]
    users = [sum(block in table for table in tables) for block in range(blocks.number)]
    assert blocks.users == users
    used = {block for block, count in enumerate(users) if count}
    assert sorted([*blocks._free, *blocks._kept, *used]) == list(range(blocks.number))
    assert {block for block, _ in blocks._found.values()} == set(blocks._names) >= set(blocks._kept)
    assert not set(blocks._free) & set(blocks._names)
    for sequence in scheduler._sequences.values():
        not_full = sequence.table[sequence.computed // blocks.size :]
        assert all(users[block] == 1 for block in not_full)


# Two tokens and short blocks: many beginnings are equal, and many end within a block.
asked = st.builds(Asked, st.lists(st.integers(0, 1), min_size=1, max_size=14).map(tuple), st.integers(1, 10))
sizes = st.builds(
    lambda block, spare, rows, more: Sizes(-(-LONGEST // block) + spare, block, rows, rows + more),
    st.integers(1, 5), st.integers(0, 12), st.integers(1, 5), st.integers(0, 9),
)  # fmt: skip
history = st.lists(st.tuples(st.lists(asked, max_size=3), st.integers(0, 3), st.booleans()), min_size=1, max_size=8)


def play(sizes: Sizes, history) -> Play:
    """Some join, some steps are made, perhaps one that goes on leaves; and so on, and then to the end."""
    game, name = Play(sizes), 0
    for joining, steps, leaves in history:
        for one in joining:
            game.add(name, one)
            name += 1
        for _ in range(steps):
            if game.scheduler.busy:
                game.step()
        if leaves and game.left:
            game.leave(max(game.left))
    while game.scheduler.busy:
        game.step()
        assert len(game.steps) < PATIENCE
    return game


@settings(max_examples=120, deadline=None, derandomize=True)
@given(sizes, history)
def test_every_row_finds_its_own_beginning_and_everyone_has_an_end(sizes, history):
    game = play(sizes, history)
    assert not game.left
    assert not any(game.scheduler.blocks.users) and game.scheduler.blocks.available == sizes.blocks
    again = play(sizes, history)
    assert again.steps == game.steps and again.texts == game.texts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, st.lists(asked, min_size=1, max_size=8))
def test_first_come_first_served(sizes, requests):
    game = Play(sizes)
    for name, one in enumerate(requests):
        game.add(name, one)
    while game.scheduler.busy:
        oldest, decoding = min(game.left), {s.name for s in game.scheduler._running if s.pending == 1}
        step = game.step()
        names = [row.sequence for row in step.rows]
        assert names == sorted(names) and names[0] == oldest  # the oldest goes on in every step
        assert decoding <= {*names, *step.gave_way}  # nobody's next token waits for another's prompt
        # Who gives way is younger than all who go on.
        assert all(name > max(names) for name in step.gave_way)
        assert list(step.gave_way) == sorted(step.gave_way, reverse=True)


def test_the_youngest_gives_way_and_comes_back_with_its_tokens():
    game = Play(Sizes(blocks=6, block=2, rows=2, budget=8))
    game.add(0, Asked((0, 0, 0), 8))
    game.add(1, Asked((1, 1, 1), 8))
    while game.scheduler.busy:
        game.step()
    assert [step.gave_way for step in game.steps if step.gave_way] == [(1,)]
    back = next(row for step in game.steps[5:] for row in step.rows if row.sequence == 1 and len(row.tokens) > 1)
    assert len(back.tokens) > 3  # its own new ones among them
    assert game.scheduler.totals.gave_way == 1 and game.scheduler.totals.reused == 0
    assert game.texts[1] == undisturbed(Asked((1, 1, 1), 8))


def undisturbed(asked: Asked) -> list[int]:
    text = list(asked.prompt)
    for _ in range(asked.new):
        text.append(following(text))
    return text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, st.lists(asked, min_size=1, max_size=6))
def test_who_gave_way_writes_the_same_text(sizes, requests):
    game = play(sizes, [(requests, 0, False)])
    assert [game.texts[name] for name in range(len(requests))] == [undisturbed(one) for one in requests]


def test_samples_of_one_prompt_share_its_full_blocks_within_the_step_that_computes_them():
    game = Play(Sizes(blocks=40, block=4, rows=8, budget=64))
    prompt = tuple(range(10, 21))
    for name in range(4):
        game.add(name, Asked(prompt, 5))
    step = game.step()
    assert [len(row.tokens) for row in step.rows] == [11, 3, 3, 3]
    assert {row.table[:2] for row in step.rows} == {step.rows[0].table[:2]}
    assert len({row.table[2] for row in step.rows}) == 4  # the last block is not full: everyone has his own
    assert game.scheduler.totals.reused == 3 * 8 and game.scheduler.totals.computed == 11 + 3 * 3


def test_a_prompt_that_is_there_as_a_whole_computes_its_last_block_again():
    game = Play(Sizes(blocks=9, block=4, rows=2, budget=64))
    for name in range(2):
        game.add(name, Asked((5, 6, 7, 8, 1, 2, 3, 4), 1))
    assert [row.start for row in game.step().rows] == [0, 4]


def test_prompts_come_in_chunks_beside_tokens_that_are_drawn():
    game = Play(Sizes(blocks=40, block=4, rows=4, budget=6))
    game.add(0, Asked((1, 2), 9))
    game.step()
    game.add(1, Asked(tuple(range(3, 16)), 2))
    parts = [[(row.sequence, len(row.tokens), row.draws) for row in game.step().rows] for _ in range(4)]
    assert parts == [
        [(0, 1, True), (1, 5, False)],
        [(0, 1, True), (1, 5, False)],
        [(0, 1, True), (1, 3, True)],
        [(0, 1, True), (1, 1, True)],
    ]


def test_nobody_is_let_in_where_those_who_run_have_no_block_to_grow_into():
    game = Play(Sizes(blocks=6, block=2, rows=3, budget=20))
    game.add(0, Asked((0, 0, 0), 5))
    game.add(1, Asked((1, 1, 1, 1, 1, 1), 1))
    game.add(2, Asked((1,), 1))
    # Of 6 blocks the first has 2, and may need another while the second fills 3: then one remains for both to grow.
    assert [row.sequence for row in game.step().rows] == [0, 1]
    assert game.scheduler.blocks.available == 4  # the second has left
    tight = Play(Sizes(blocks=4, block=2, rows=3, budget=20))
    tight.add(0, Asked((0, 0, 0), 5))
    tight.add(1, Asked((1, 1, 1), 1))
    assert [row.sequence for row in tight.step().rows] == [0]


def test_blocks_of_those_who_left_are_found_until_others_need_them_the_least_recently_used_first():
    game = Play(Sizes(blocks=5, block=2, rows=1, budget=8))
    first, second = Asked((1, 1, 2, 2, 3), 1), Asked((4, 4, 5, 5, 6), 1)

    def reused(asked: Asked) -> int:
        before = game.scheduler.totals.reused
        game.add(len(game.steps), asked)
        game.step()
        return game.scheduler.totals.reused - before

    assert [reused(first), reused(second), reused(first), reused(second)] == [0, 0, 4, 4]
    assert reused(Asked((7, 7, 8), 1)) == 0  # takes the free block, and the end of what was used the longest ago
    assert [reused(second), reused(first)] == [4, 2]


def test_a_block_without_its_ancestors_is_not_found():
    blocks = Blocks(3, 1)
    table = [blocks.take() for _ in range(3)]
    beginning = 0
    for block, token in zip(table, (7, 8, 9), strict=True):
        beginning = blocks.full(block, beginning, [token])
    blocks.release(table)
    assert blocks.find([7, 8, 9], 3)[0] == table
    blocks.share(table[1:])  # as if the beginning had been used by nobody
    assert blocks.take() == table[0]
    assert blocks.find([7, 8, 9], 3) == ([], 0)
    assert blocks.full(table[0], 0, [7]) > beginning  # the same again has a new number
    assert blocks.find([7, 8, 9], 3)[0] == table[:1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"blocks": 0}, "blocks = 0: must be 1 or more"),
        ({"block": 0}, "block = 0: must be 1 or more"),
        ({"rows": 0}, "rows = 0: must be 1 or more"),
        ({"rows": 8, "budget": 7}, "budget = 7: must be at least rows = 8"),
    ],
)
def test_sizes_with_which_a_sequence_could_stand_still_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        Sizes(**{"blocks": 4} | values)


def test_a_sequence_that_the_blocks_cannot_hold_is_refused():
    scheduler = Scheduler(Sizes(3, block=4))
    with pytest.raises(UsageError, match="a sequence of 13 tokens takes 4 blocks of 4: the cache has 3"):
        scheduler.add(0, [1], 13)
    assert not scheduler.busy
    scheduler.add(0, [1], 12)
