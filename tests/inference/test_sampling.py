import pytest
import torch

from megatron_lite.errors import UsageError
from megatron_lite.inference.sampling import Sampling, choose, probabilities

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0, -4.0], [0.0, 0.0, 0.0, 5.0, 0.0]], dtype=torch.float64)


def test_without_filters_it_is_the_softmax_at_the_temperature():
    torch.testing.assert_close(probabilities(LOGITS, Sampling(0.5)), torch.softmax(LOGITS / 0.5, -1))


def test_top_k_keeps_the_k_most_likely_in_their_proportion():
    p = probabilities(LOGITS, Sampling(1.0, top_k=2))[0]
    weights = torch.tensor([0.0, 3.0, 2.0, 0.0, 0.0], dtype=torch.float64).exp() * torch.tensor([0, 1, 1, 0, 0])
    torch.testing.assert_close(p, weights / weights.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.1, [0]), (0.39, [0]), (0.41, [0, 1]), (0.69, [0, 1]), (0.71, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    found = probabilities(p.log(), Sampling(1.0, top_p=top_p))[0]
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = p[0, kept] / p[0, kept].sum()
    torch.testing.assert_close(found, expected)


def test_top_p_counts_what_top_k_left():
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    # Of the first two, the first has 4/7.
    found = probabilities(p.log(), Sampling(1.0, top_k=2, top_p=0.5))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))


def test_a_top_k_above_the_vocabulary_keeps_all():
    torch.testing.assert_close(probabilities(LOGITS, Sampling(1.0, top_k=50)), torch.softmax(LOGITS, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tiny_temperature_is_greedy_and_finite(dtype):
    p = probabilities(LOGITS.to(dtype) * 1e4, Sampling(1e-30, top_p=0.9))
    torch.testing.assert_close(p, torch.eye(5)[[1, 3]])


def test_draws_have_the_distributions_frequencies():
    rows = LOGITS[:1].expand(20000, -1)
    drawn = choose(rows, Sampling(1.0), torch.Generator().manual_seed(0))
    p = torch.softmax(LOGITS[0], -1)
    frequency = torch.bincount(drawn, minlength=5) / len(drawn)
    # Five standard deviations of a binomial share.
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_temperature_zero_is_the_first_most_likely():
    generator = torch.Generator().manual_seed(0)
    assert choose(torch.tensor([[1.0, 7.0, 7.0]]), Sampling(0.0), generator).tolist() == [1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0: must be 1 or more"),
        ({"top_p": 0.0}, "top_p = 0.0: must be above 0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_values_out_of_range_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        Sampling(**values)
