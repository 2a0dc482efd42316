"""The unigram model's cross-entropy against its definition, token by token."""

import math

import numpy as np
import pytest

from tools.unigram_baseline import count_targets, unigram_cross_entropy


def test_a_sample_s_first_token_is_no_target() -> None:
    samples = [np.array([3, 0, 1]), np.array([1, 1, 2])]
    assert count_targets(samples, 4).tolist() == [1, 2, 1, 0]


def test_the_cross_entropy_is_the_mean_surprise_with_every_count_raised_by_one() -> None:
    train, valid = [0, 0, 0, 1], [0, 1, 2]
    shares = [4 / 7, 2 / 7, 1 / 7]
    expected = sum(-math.log(shares[token]) for token in valid) / len(valid)
    counts = [np.bincount(tokens, minlength=3) for tokens in (train, valid)]
    assert unigram_cross_entropy(*counts) == pytest.approx(expected, rel=1e-12)


def test_uniform_counts_give_the_logarithm_of_the_vocabulary() -> None:
    assert unigram_cross_entropy(np.full(512, 10), np.arange(512)) == pytest.approx(math.log(512))
