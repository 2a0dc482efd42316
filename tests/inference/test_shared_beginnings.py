"""Which tokens go through the model: each beginning once, where it is looked at, in a cache of a bounded size."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.inference.shared_beginnings import Question, alike, positions_for, steps

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
LONGEST = 17
QUESTIONS = st.lists(st.builds(Question, TOKENS, TOKENS), min_size=1, max_size=12)


def replayed(questions: list[Question], budget: int) -> int:
    """Tokens computed. A slot remembers the whole text up to its token, as keys and values do: what a row reads in its
    table and what stands after a place that is looked at are known exactly.
    """
    memory: dict[int, tuple[int, ...]] = {}
    seen: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
    computed = 0
    for step in steps(questions, LONGEST, budget):
        after: list[tuple[int, ...]] = []
        written = [slot for row in step.rows for slot in row.slots]
        assert len(set(written)) == len(written) <= budget and max(written) < positions_for(LONGEST, budget)
        assert len(step.looks) <= budget + max(len(one.continuation) for one in questions)
        for row in step.rows:
            before = tuple(memory[slot][-1] for slot in row.table[: row.start])
            for number, (token, slot) in enumerate(zip(row.tokens, row.slots, strict=True)):
                text = (*before, *row.tokens[: number + 1])
                memory[slot] = text
                assert token == text[-1] and row.table[row.start + number] == slot
                after.append(text)
        for row in step.rows:  # all are stored before any attends
            whole = memory[row.table[-1]]
            assert [memory[slot] for slot in row.table] == [whole[: n + 1] for n in range(len(whole))]
        for look in step.looks:
            seen[look.question, look.number] = after[look.place], look.label
        computed += len(after)
    expected = {
        (number, place): (question.context + question.continuation[:place], label)
        for number, question in enumerate(questions)
        for place, label in enumerate(question.continuation)
    }
    assert seen == expected
    return computed


@settings(max_examples=100, deadline=None)
@given(QUESTIONS, st.integers(1, 12))
def test_every_label_is_looked_at_after_its_own_text_whatever_the_steps(questions, budget):
    replayed(questions, budget)


@given(QUESTIONS)
def test_in_one_step_each_beginning_is_computed_once(questions):
    beginnings = {one.read[: n + 1] for one in questions for n in range(len(one.read))}
    assert replayed(questions, 1000) == len(beginnings)


def test_choices_of_one_context_share_it_and_single_tokens_take_none():
    context = tuple(range(100, 140))
    letters = [Question(context, (letter,)) for letter in range(4)]
    words = [Question(context, (7, letter, 9)) for letter in range(4)]
    assert replayed_tokens(letters) == len(context)
    assert replayed_tokens(words) == len(context) + 1 + 4
    assert replayed_tokens([*letters, *words]) == len(context) + 1 + 4


def replayed_tokens(questions: list[Question]) -> int:
    return sum(step.tokens for step in steps(questions, 64, 512))


def test_a_long_beginning_that_steps_have_in_common_is_not_computed_again():
    shown = tuple(range(200))
    questions = [Question((*shown, 1000 + n, n), (5, 6)) for n in range(50)]
    assert sum(step.tokens for step in steps(questions, 256, 64)) <= len(shown) + 50 * 3 + 10


def test_alike_counts_the_common_beginning():
    assert [alike(a, b) for a, b in ([(1, 2), (1, 3)], [(1,), (1, 2)], [(), (1,)], [(2,), (1,)])] == [1, 1, 0, 0]
