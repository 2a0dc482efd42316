"""The chance that two documents of Jaccard similarity s share a band is 1 - (1 - s^8)^14."""

import math

import numpy as np
import pytest

from megatron_lite.curation import _dedup

# Shingles that two documents have in common, and that each has alone: s = common / (common + 2 alone).
PLANTED = [(30, 35), (40, 30), (50, 25), (60, 20), (70, 15), (80, 10), (90, 5)]


def planted_pairs(generator: np.random.Generator, common: int, alone: int, pairs: int) -> tuple[list[str], list[str]]:
    """Documents of words that occur once: n words in a row have n - 4 shingles, and one new word at an end adds one."""
    words = generator.integers(2**60, size=(pairs, common + 4 + 2 * alone))
    words = [[f"w{word:x}" for word in row] for row in words.tolist()]
    begin = common + 4
    first = [" ".join(row[: begin + alone]) for row in words]
    second = [" ".join(row[:begin] + row[begin + alone :]) for row in words]
    return first, second


def binomial_p_value(hits: int, trials: int, probability: float) -> float:
    """Two-sided: twice the lesser tail of the exact distribution."""
    log = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(probability) + (trials - k) * math.log1p(-probability)
        for k in range(trials + 1)
    ]  # fmt: skip
    below, above = math.fsum(map(math.exp, log[: hits + 1])), math.fsum(map(math.exp, log[hits:]))
    return min(1.0, 2 * min(below, above))


def check_curve(seed: int, common: int, alone: int, pairs: int) -> float:
    similarity = common / (common + 2 * alone)
    first, second = planted_pairs(np.random.default_rng(seed), common, alone, pairs)
    shared = _dedup.band_hashes(first, seed)[0] == _dedup.band_hashes(second, seed)[0]
    in_a_band = similarity**8
    expected = 1 - (1 - in_a_band) ** 14
    found = int(shared.any(1).sum())
    p_value = binomial_p_value(found, pairs, expected)
    print(
        f"s = {similarity:.2f}: {found / pairs:.4f} of {pairs} pairs found, {expected:.4f} expected, p = {p_value:.3f}"
    )
    # Bands are independent of each other as well: their hits have the mean and the variance of a binomial.
    hits = shared.sum(1)
    variance = 14 * in_a_band * (1 - in_a_band)
    assert abs(hits.mean() - 14 * in_a_band) < 4 * math.sqrt(variance / pairs)
    kurtosis = 3 + (1 - 6 * in_a_band * (1 - in_a_band)) / variance
    assert abs(hits.var() - variance) < 5 * variance * math.sqrt((kurtosis - 1) / pairs)
    return p_value


@pytest.mark.parametrize(("common", "alone"), PLANTED)
def test_pairs_are_found_as_often_as_the_closed_form_says(common, alone):
    # Of all right implementations one in 10,000 would fail here; this one always gives the same numbers.
    assert check_curve(1, common, alone, 1000) > 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize(("common", "alone"), PLANTED)
def test_pairs_are_found_as_often_with_other_permutations_and_many_pairs(seed, common, alone):
    assert check_curve(seed, common, alone, 20_000) > 1e-4


def test_a_similarity_within_one_permutation_is_estimated_without_bias():
    """Long documents: 32-bit hashes and linear permutations leave no bias that 14 x 4,000 bands could see."""
    assert check_curve(9, 800, 100, 300) > 1e-4
