import pytest

from megatron_lite.data import blend
from megatron_lite.data.blend import BlendedDataset


class Numbers:
    """Sample i of data set d is (d, i)."""

    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.name, index


def numbers(count):
    return [Numbers(d, 10 * (d + 1)) for d in range(count)]


def test_weights_are_taken_on_any_scale():
    small = BlendedDataset(numbers(3), [0.5, 0.25, 0.25])
    large = BlendedDataset(numbers(3), [200, 100, 100])
    assert [small[i] for i in range(12)] == [large[i] for i in range(12)]
    assert [small[i][0] for i in range(12)] == [0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0]


def test_every_data_set_gives_its_samples_in_order_and_goes_on_past_its_end():
    dataset = BlendedDataset(numbers(2), [3, 1])
    taken = [dataset[i] for i in range(400)]
    for d in range(2):
        assert [i for name, i in taken if name == d] == list(range([300, 100][d]))


def test_shares_stay_within_two_samples_of_the_weights_all_along():
    weights = [0.31, 0.005, 0.25, 0.435]
    dataset, counts = BlendedDataset(numbers(4), weights), [0] * 4
    for i in range(3000):
        counts[dataset[i][0]] += 1
        assert all(abs(count - weight * (i + 1)) < 2 for count, weight in zip(counts, weights, strict=True))


def test_the_blocks_are_of_no_consequence(monkeypatch):
    whole = BlendedDataset(numbers(3), [0.6, 0.3, 0.1])
    expected = [whole[i] for i in range(100)]
    monkeypatch.setattr(blend, "BLOCK", 7)
    assert [BlendedDataset(numbers(3), [0.6, 0.3, 0.1])[i] for i in reversed(range(100))] == expected[::-1]
    walked = BlendedDataset(numbers(3), [0.6, 0.3, 0.1])
    assert [walked[i] for i in range(100)] == expected


def test_a_jump_far_in_gives_what_a_walk_gives():
    far = 3 * blend.BLOCK + 5
    walked = BlendedDataset(numbers(2), [0.7, 0.3])
    for i in range(0, far, blend.BLOCK // 2):
        walked.source(i)
    assert BlendedDataset(numbers(2), [0.7, 0.3]).source(far) == walked.source(far)


def test_an_epoch_is_the_epochs_of_all():
    assert len(BlendedDataset(numbers(3), [1, 1, 1])) == 10 + 20 + 30


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], []])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="above 0"):
        BlendedDataset(numbers(2) if weights else [], weights)


def test_a_negative_sample_is_refused():
    with pytest.raises(IndexError):
        BlendedDataset(numbers(1), [1])[-1]
