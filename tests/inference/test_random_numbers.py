import math

import pytest
import torch

from megatron_lite.inference.random_numbers import exponentials
from megatron_lite.model.splitmix import key_of

CPU, MASK = torch.device("cpu"), (1 << 64) - 1


def splitmix(key: int, index: int) -> int:
    """In Python's integers, of any length."""
    z = (key + index * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_generator_is_the_published_one():
    # The first numbers of the seed 1234567 in Vigna's splitmix64.c, which counts from 1.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567, index) for index in (1, 2, 3)] == known


def test_numbers_are_those_of_key_and_index_whatever_stands_beside_them():
    keys = [key_of(3, 0, 0, 7), key_of(3, 0, 0, 8), -1]
    together = exponentials(keys, 300, CPU)
    for row, key in zip(together, keys, strict=True):
        truth = [-math.log(((splitmix(key, index) >> 12) + 0.5) / 2**52) for index in range(300)]
        torch.testing.assert_close(row, torch.tensor(truth, dtype=torch.float64), rtol=1e-14, atol=0)
        assert torch.equal(exponentials([key], 40, CPU)[0], row[:40])


def test_a_key_knows_its_numbers_apart():
    assert len({key_of(*n) for n in [(1, 2, 3, 4), (1, 2, 4, 3), (1, 23, 4, 0), (12, 3, 4, 0), (1, 2, 34, 0)]}) == 5


@pytest.mark.parametrize("moment", [1, 2])
def test_they_are_exponential(moment):
    found = exponentials([key_of(0, 0, 0, position) for position in range(50)], 2000, CPU).flatten()
    deviation = math.sqrt(math.factorial(2 * moment) - math.factorial(moment) ** 2)
    assert abs(found.pow(moment).mean() - math.factorial(moment)) < 5 * deviation / math.sqrt(len(found))
    assert (found > 0).all() and found.isfinite().all()
