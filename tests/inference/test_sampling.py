"""Each option against a formula in plain Python, and against what transformers' own processors give."""

from collections import Counter
from math import exp, inf, log

import pytest
import torch

from megatron_lite.errors import UsageError
from megatron_lite.inference import sampling as module
from megatron_lite.inference.random_numbers import exponentials
from megatron_lite.inference.sampling import Draw, Sampling, adjusted, choose, log_probabilities, probabilities
from megatron_lite.model.splitmix import key_of

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0, -4.0], [0.0, 0.0, 0.0, 5.0, 0.0]], dtype=torch.float64)
SHARES = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)


def kept(found: torch.Tensor, shares: torch.Tensor, which: list[int]) -> bool:
    """Whether these alone are left, in their proportion."""
    expected = torch.zeros_like(shares)
    expected[which] = shares[which] / shares[which].sum()
    torch.testing.assert_close(found, expected)
    return True


def draws(count: int, sampling: Sampling, **others) -> list[Draw]:
    return [Draw(sampling, key_of(0, number, 0, 5), **others) for number in range(count)]


def test_without_filters_it_is_the_softmax_at_the_temperature():
    torch.testing.assert_close(probabilities(LOGITS, Sampling(0.5)), torch.softmax(LOGITS / 0.5, -1))


def test_top_k_keeps_the_k_most_likely():
    shares = LOGITS[0].exp()
    assert all(
        kept(probabilities(LOGITS, Sampling(1.0, top_k=k))[0], shares, [1, 2, 0, 3, 4][:k]) for k in (1, 2, 5, 9)
    )


@pytest.mark.parametrize(
    ("top_p", "which"),
    [(0.1, [0]), (0.39, [0]), (0.41, [0, 1]), (0.69, [0, 1]), (0.71, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, which):
    assert kept(probabilities(SHARES.log(), Sampling(1.0, top_p=top_p))[0], SHARES[0], which)


def test_top_p_counts_what_top_k_left_and_min_p_what_they_leave():
    # Of the first two, the first has 4/7.
    assert kept(probabilities(SHARES.log(), Sampling(1.0, top_k=2, top_p=0.5))[0], SHARES[0], [0])
    assert kept(probabilities(SHARES.log(), Sampling(1.0, top_k=3, top_p=0.95, min_p=0.6))[0], SHARES[0], [0, 1])


@pytest.mark.parametrize(("min_p", "which"), [(0.0, [0, 1, 2, 3]), (0.26, [0, 1, 2]), (0.74, [0, 1]), (1.0, [0])])
def test_min_p_keeps_what_has_that_share_of_the_likeliest(min_p, which):
    assert kept(probabilities(SHARES.log(), Sampling(1.0, min_p=min_p))[0], SHARES[0], which)
    # Shares are those at the temperature: at 1/2 they are squared.
    assert kept(probabilities(SHARES.log() / 2, Sampling(0.5, min_p=min_p))[0], SHARES[0], which)


def test_equal_tokens_stay_or_go_together():
    p = probabilities(LOGITS, Sampling(1.0, top_k=2))[1]
    torch.testing.assert_close(p, torch.softmax(LOGITS[1], -1))
    assert (probabilities(LOGITS, Sampling(1.0, top_p=0.98))[1] > 0).all()


def test_each_row_has_its_own_filters():
    ways = [Sampling(1.0), Sampling(2.0, top_k=2), Sampling(1.0, top_p=0.5), Sampling(0.7, min_p=0.3, top_k=3)]
    rows = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = module.filtered(rows, ways).softmax(-1)
    for row, way, found in zip(rows, ways, together, strict=True):
        torch.testing.assert_close(probabilities(row[None], way)[0], found)


def test_top_p_beyond_the_tokens_that_are_sorted_first(monkeypatch):
    rows = torch.randn(3, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.3
    whole = probabilities(rows, Sampling(1.0, top_p=0.9))
    assert ((whole > 0).sum(-1) > 100).all()
    monkeypatch.setattr(module, "RANKED", 8)
    assert torch.equal(probabilities(rows, Sampling(1.0, top_p=0.9)), whole)


# What transformers 4.57.1's SequenceBias, RepetitionPenalty, Temperature, TopK, TopP and MinP make of these logits, one
# after the other as in its generate, where a text began with 1 2 2 5.
THEIR_LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0, -4.0, 1.5, -0.5, 0.25]], dtype=torch.float64)
THEIRS = [
    (Sampling(1.0, repetition_penalty=1.3),
     [0.115641357602, 0.427599053089, 0.198136303514, 0.042542078011, 0.000779185338, 0.13487383836, 0.025803074641,
      0.054625109445]),
    (Sampling(0.7, top_k=3), [0, 0.736935857642, 0.176607442075, 0, 0, 0.086456700283, 0, 0]),
    (Sampling(1.4, top_p=0.8), [0.115677800954, 0.482692679622, 0.236298175438, 0, 0, 0.165331343986, 0, 0]),
    (Sampling(0.9, min_p=0.15), [0, 0.658731763612, 0.216849877427, 0, 0, 0.12441835896, 0, 0]),
    (Sampling(1.3, 6, 0.9, 0.1, 1.2, logit_bias={3: 2.5, 1: -1.0}),
     [0.114647394827, 0.191460553227, 0.191460553227, 0.363473880949, 0, 0.138957617771, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("way", "theirs"), THEIRS)
def test_a_distribution_is_that_of_transformers(way, theirs):
    found = probabilities(adjusted(THEIR_LOGITS, [Draw(way, 0, prompt=(1, 2), answer=(2, 5))]), way)
    torch.testing.assert_close(found[0], torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-11)


def by_formula(logits: list[float], draw: Draw) -> list[float]:
    """The distribution in plain Python, token by token."""
    way, answer = draw.sampling, Counter(draw.answer)
    values = [x + way.logit_bias.get(token, 0.0) for token, x in enumerate(logits)]
    for token in {*draw.prompt, *draw.answer}:
        values[token] *= way.repetition_penalty if values[token] < 0 else 1 / way.repetition_penalty
    for token, times in answer.items():
        values[token] -= way.presence_penalty + way.frequency_penalty * times
    if draw.vocab_size is not None:
        values[draw.vocab_size :] = [-inf] * (len(values) - draw.vocab_size)
    weights = [exp(x / way.temperature) for x in values]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[: way.top_k]
    total, left, so_far = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if so_far < (way.top_p or 1) * total:
            left.append(token)
        so_far += weights[token]
    left = [token for token in left if weights[token] >= (way.min_p or 0) * weights[left[0]]]
    total = sum(weights[token] for token in left)
    return [weights[token] / total if token in left else 0.0 for token in range(len(weights))]


WAYS = [
    Sampling(1.0, repetition_penalty=1.7),
    Sampling(0.7, repetition_penalty=0.5),
    Sampling(1.0, presence_penalty=0.4),
    Sampling(1.0, frequency_penalty=-0.3),
    Sampling(1.0, logit_bias={0: 2.5, 7: -inf, 11: -1.0}),
    Sampling(1.3, 9, 0.8, 0.05, 1.2, 0.5, 0.25, {3: 4.0, 2: -1.0}),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answer", [(), (2, 5, 2, 2, 9)], ids=["first", "later"])
def test_all_options_are_their_formulas(way, answer):
    logits = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    before = logits.clone()
    rows = draws(4, way, prompt=(1, 2, 2), answer=answer, vocab_size=11)
    found = module.filtered(adjusted(logits, rows), [way] * 4).softmax(-1)
    for row, distribution in zip(logits.tolist(), found, strict=True):
        truth = torch.tensor(by_formula(row, rows[0]), dtype=torch.float64)
        torch.testing.assert_close(distribution, truth, rtol=1e-12, atol=1e-15)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tiny_temperature_is_greedy_and_finite(dtype):
    p = probabilities(LOGITS.to(dtype) * 1e4, Sampling(1e-30, top_p=0.9))
    torch.testing.assert_close(p, torch.eye(5, dtype=torch.float64)[[1, 3]])


def test_draws_have_the_distributions_frequencies():
    rows = LOGITS[:1].expand(20000, -1)
    drawn = choose(rows, draws(20000, Sampling(1.0)))
    p = torch.softmax(LOGITS[0], -1)
    frequency = torch.bincount(drawn, minlength=5) / len(drawn)
    # Five standard deviations of a binomial share.
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_the_largest_share_of_its_own_random_number_wins():
    rows = torch.randn(50, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    some = draws(50, Sampling(0.9, top_k=7))
    shares = probabilities(rows, some[0].sampling)
    runners = exponentials([draw.key for draw in some], 40, torch.device("cpu"))
    assert torch.equal(choose(rows, some), (shares / runners).argmax(-1))
    # Whoever stands beside it, and in whatever order.
    mixed = [*some[:3], Draw(Sampling(0), 0)]
    assert choose(rows[[2, 1, 0, 3]], [mixed[i] for i in (2, 1, 0, 3)]).tolist() == [
        *choose(rows[:3], some[:3]).flip(0).tolist(),
        int(rows[3].argmax()),
    ]


def test_temperature_zero_is_the_first_most_likely_with_bias_and_penalties():
    logits = torch.tensor([[1.0, 7.0, 7.0]])
    assert choose(logits, [Draw(Sampling(0.0), 0)]).tolist() == [1]
    assert choose(logits, [Draw(Sampling(0.0, logit_bias={0: 7.0}), 0)]).tolist() == [0]
    assert choose(logits, [Draw(Sampling(0.0, presence_penalty=1.0), 0, answer=(1,))]).tolist() == [2]
    assert choose(logits, [Draw(Sampling(0.0), 0, vocab_size=1)]).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_log_probabilities_are_the_models_own(dtype):
    logits = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(dtype)
    tokens = torch.tensor([4, 0, 8])
    truth = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    found = log_probabilities(logits, tokens, 3)
    torch.testing.assert_close(found.chosen, truth[range(3), tokens])
    torch.testing.assert_close(found.others, truth.sort(-1, descending=True).values[:, :3])
    torch.testing.assert_close(truth.gather(-1, found.tokens), found.others)
    assert log_probabilities(logits, tokens, 0).others.shape == (3, 0)
    assert log_probabilities(logits, tokens, 50).tokens.shape == (3, 9)


def test_a_share_of_the_likeliest_is_a_difference_of_logits():
    p = probabilities(
        torch.tensor([[0.0, log(0.5) + 1e-9, log(0.5) - 1e-9]], dtype=torch.float64), Sampling(1.0, min_p=0.5)
    )
    assert (p > 0).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0: must be 1 or more"),
        ({"top_p": 0.0}, "top_p = 0.0: must be above 0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"min_p": 1.1}, "min_p = 1.1: must be 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: must be a positive number"),
        ({"presence_penalty": inf}, "presence_penalty = inf: must be a number"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty = nan: must be a number"),
        ({"logit_bias": {3: inf}}, "logit_bias 3: inf: must be a token id and a number"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias -1: 0.0: must be a token id"),
    ],
)
def test_values_out_of_range_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        Sampling(**values)
