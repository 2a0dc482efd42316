"""What continuations are worth, on layouts and in any batch: against a plain model in float64."""

import random
from itertools import pairwise

import pytest
import torch
from support.asking import build_to_ask
from support.generation import loaded, saved_model
from support.layouts import Layout
from support.reference import logits as plain_logits

from megatron_lite.errors import UsageError
from megatron_lite.inference.scoring import Scorer, Worth, shares
from megatron_lite.inference.shared_beginnings import Question
from megatron_lite.parallel.pipeline.stage import held

LONGEST, VOCABULARY = 16, 61
LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=4),
    Layout(data=2),
    Layout(tensor=2, pipeline=2),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2),
    Layout(tensor=2, pipeline=2, data=2),
]


def questions() -> list[Question]:
    """Contexts with several choices of one token and of more, some inside others, up to the longest; one twice."""
    draw = random.Random(5)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(least, most)))

    made = []
    for _ in range(8):
        context = tokens(2, 11)
        made += [Question(context, tokens(1, 5)) for _ in range(3)]
        made += [Question(context, tokens(1, 1)) for _ in range(3)]
        made.append(Question(context[:1], tokens(1, 3)))
    made += [Question((1,), tokens(16, 16)), made[0]]
    draw.shuffle(made)
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(a model in float64, what each question is worth to a plain one)."""
    checkpoint, weights = saved_model(tmp_path_factory.mktemp("model"), Layout())
    model = loaded(checkpoint)
    return model, [plainly(one, weights, model.config.model) for one in questions()]


def plainly(question: Question, weights, model) -> Worth:
    labels = torch.tensor(question.continuation)
    rows = plain_logits(weights, torch.tensor([question.read]), model)[0, -len(labels) :]
    worths = rows.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    return Worth(tuple(worths.tolist()), tuple((rows.argmax(-1) == labels).tolist()))


def assert_close(ours: list[Worth], truth: list[Worth], within: float) -> None:
    assert [one.greedy for one in ours] == [one.greedy for one in truth]
    for one, other in zip(ours, truth, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, rel=0, abs=within)
        assert one.total == pytest.approx(sum(other.log_probabilities), rel=0, abs=20 * within)


@pytest.mark.parametrize("budget", [3, 11, 512])
def test_they_are_those_of_a_plain_model_in_steps_of_any_size(found, budget):
    model, truth = found
    scorer = Scorer(model, budget)
    assert_close(scorer.worths(questions()), truth, 1e-12)
    assert_close(scorer.worths(questions()[:9]), truth[:9], 1e-12)  # beside what the cache still holds


def test_each_beginning_goes_through_the_model_once(found):
    model, _ = found
    scorer = Scorer(model)
    scorer.worths(questions())
    assert scorer.computed == len({one.read[: n + 1] for one in questions() for n in range(len(one.read))})


def test_what_is_asked_beside_a_question_changes_nothing_but_the_last_bits(found):
    model, _ = found
    together, scorer = Scorer(model).worths(questions()), Scorer(model)
    assert_close([scorer.worths([one])[0] for one in questions()], together, 1e-13)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.15)])
def test_how_much_the_batch_changes_in_other_dtypes(dtype, bound):
    model = build_to_ask(Layout(dtype=dtype))
    with held(model.stage):
        together, scorer = Scorer(model).worths(questions()), Scorer(model)
        alone = [scorer.worths([one])[0] for one in questions()]
    worst = max(abs(a.total - b.total) for a, b in zip(together, alone, strict=True))
    print(f"{dtype}: a continuation's log-probability, alone and beside others, differs by {worst:.1e} at most")
    assert worst <= bound


def scored(layout: Layout) -> list[Worth]:
    model = build_to_ask(layout)
    with held(model.stage):
        return Scorer(model, budget=11).worths(questions())


@pytest.fixture(scope="module")
def alone() -> list[Worth]:
    return scored(Layout())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_of_a_layout_finds_the_same(layout, alone, ranks):
    for rank in ranks.run(scored, layout.world, layout):
        assert_close(rank, alone, 1e-12)


def test_replicas_share_the_work_and_keep_together_what_begins_alike():
    asked = questions()
    parts = shares(asked, 3)
    assert sorted(number for part in parts for number in part) == list(range(len(asked)))
    contexts = [{asked[number].context for number in part} for part in parts]
    assert all(len(one & other) <= 1 for one, other in pairwise(contexts))
    work = [sum(len(asked[number].read) for number in part) for part in parts]
    assert max(work) < 2 * min(work)
    assert shares(asked[:1], 3).count([]) == 2 and shares([], 2) == [[], []]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question((), (1,)), "a context and a continuation of a token or more"),
        (Question((1,), ()), "a context and a continuation of a token or more"),
        (Question((1,) * LONGEST, (1, 1)), "a question of 18 tokens: must have at most 17"),
        (Question((1,), (VOCABULARY,)), "token id 61: model.vocab_size = 61"),
    ],
)
def test_what_the_model_cannot_read_is_refused(found, question, said):
    with pytest.raises(UsageError, match=said):
        Scorer(found[0]).worths([question])
