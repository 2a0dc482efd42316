import numpy as np
import pytest

from megatron_lite.data import blend
from megatron_lite.data.blend import Blend, BlendedDataset, Phase


class Numbers:
    """Sample i of data set d is [d, i]."""

    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def read(self, first, count):
        return np.stack([np.full(count, self.name), np.arange(first, first + count)], 1)


def numbers(count):
    return [Numbers(d, 10 * (d + 1)) for d in range(count)]


def blend_of(weights, *changes):
    return BlendedDataset(numbers(len(weights)), [Phase(0, weights), *changes])


def taken(dataset, first, count):
    return [tuple(row) for row in dataset.read(first, count).tolist()]


def test_weights_are_taken_on_any_scale():
    small, large = blend_of([0.5, 0.25, 0.25]), blend_of([200, 100, 100])
    assert taken(small, 0, 12) == taken(large, 0, 12)
    assert [name for name, _ in taken(small, 0, 12)] == [0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0]


def test_every_data_set_gives_its_samples_in_order_and_goes_on_past_its_end():
    places = taken(blend_of([3, 1]), 0, 400)
    for d in range(2):
        assert [i for name, i in places if name == d] == list(range([300, 100][d]))


def test_shares_stay_near_the_weights_all_along():
    weights = [0.31, 0.005, 0.25, 0.435]
    dataset, counts = blend_of(weights), [0] * 4
    for i, (name, _) in enumerate(taken(dataset, 0, 3000), 1):
        counts[name] += 1
        assert all(abs(count - w * i) <= 0.5 + 2 * w for count, w in zip(counts, weights, strict=True))


@pytest.mark.parametrize("weights", [[1], [3, 1], [0.31, 0.005, 0.685], [1, 0, 1]])
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 1, 1], [7, 20, 3], [40, 2, 11]])
def test_the_fewest_samples_with_so_many_of_each_data_set_are_found(weights, counts):
    blend, counts = Blend.of(weights), counts[: len(weights)]
    which, _ = blend.sources(0, 5000)
    seen, walked = [0] * len(weights), 0
    while any(found < count for found, count, weight in zip(seen, counts, weights, strict=True) if weight):
        seen[which[walked]] += 1
        walked += 1
    assert blend.reaching(counts) == walked
    assert blend.given(walked).tolist() == seen


def test_the_blocks_are_of_no_consequence(monkeypatch):
    expected = taken(blend_of([0.6, 0.3, 0.1]), 0, 100)
    monkeypatch.setattr(blend, "BLOCK", 7)
    assert taken(blend_of([0.6, 0.3, 0.1]), 0, 100) == expected
    dataset = blend_of([0.6, 0.3, 0.1])
    assert [taken(dataset, i, 1)[0] for i in reversed(range(100))] == expected[::-1]


def test_a_change_of_weights_goes_on_where_each_data_set_stands():
    before, after = [0.5, 0.5, 0.0], [0.2, 0.0, 0.8]
    dataset = blend_of(before, Phase(100, after), Phase(150, [1, 1, 1]))
    places = taken(dataset, 0, 300)
    assert [name for name, _ in places[:100]] == [0, 1] * 50
    assert places[:100] == taken(blend_of(before), 0, 100)
    counts = [[name for name, _ in places[100:150]].count(d) for d in range(3)]
    assert counts == [10, 0, 40]
    assert [[name for name, _ in places[150:]].count(d) for d in range(3)] == [50, 50, 50]
    for d in range(3):
        assert [i for name, i in places if name == d] == list(range([110, 100, 90][d]))


def test_a_change_of_weights_later_leaves_what_comes_before_it():
    short = blend_of([0.7, 0.3], Phase(40, [0.1, 0.9]))
    long = blend_of([0.7, 0.3], Phase(40, [0.1, 0.9]), Phase(90, [0.5, 0.5]))
    assert taken(short, 0, 90) == taken(long, 0, 90)
    assert taken(short, 0, 120) != taken(long, 0, 120)


def test_any_stretch_over_changes_of_weights_is_part_of_the_whole(monkeypatch):
    monkeypatch.setattr(blend, "BLOCK", 16)
    changes = [Phase(33, [0.1, 0.9]), Phase(34, [1, 0]), Phase(70, [0.5, 0.5])]
    whole = taken(blend_of([0.7, 0.3], *changes), 0, 120)
    rng = np.random.default_rng(0)
    for begin in range(0, 110, 3):
        count = int(rng.integers(1, 120 - begin))
        assert taken(blend_of([0.7, 0.3], *changes), begin, count) == whole[begin : begin + count]


def test_an_epoch_is_the_epochs_of_all():
    assert len(blend_of([1, 1, 1])) == 10 + 20 + 30


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], []])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="none below 0, one above"):
        BlendedDataset(numbers(2) if weights else [], [Phase(0, weights)])


@pytest.mark.parametrize("begins", [[], [1], [0, 0], [0, 5, 5], [0, 5, 3]])
def test_phases_out_of_order_are_refused(begins):
    with pytest.raises(ValueError, match="the first begins at 0"):
        BlendedDataset(numbers(1), [Phase(begin, [1]) for begin in begins])


def test_a_negative_sample_is_refused():
    with pytest.raises(IndexError):
        blend_of([1, 1]).read(-1, 1)
