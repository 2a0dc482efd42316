"""Samples in rows: each once, none cut, near the fewest rows; and the rows of every epoch, whatever came before."""

import time

import numpy as np
import pytest

from megatron_lite.alignment.packing import Epochs, best_fit, fill_of, one_each


def rows_of(rows) -> list[list[int]]:
    return [rows.row(number) for number in range(len(rows))]


def rooms_one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """What is left in each row where samples are placed one at a time, the longest first."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


def long_tailed(count: int, capacity: int) -> np.ndarray:
    """As dialogues are: most are short, some as long as a row."""
    return np.clip(np.random.default_rng(0).lognormal(5.5, 1, count), 1, capacity).astype(np.int64)


def test_a_sample_goes_into_the_row_with_the_least_room_that_is_left():
    # 7; 6; 4 beside 6, which is left with none; 3 beside 7; 2 fits nowhere.
    assert rows_of(best_fit(np.array([4, 2, 7, 3, 6]), 10)) == [[2, 3], [4, 0], [1]]


def test_of_equal_samples_the_earlier_comes_first():
    assert rows_of(best_fit(np.array([4, 4, 4, 4, 4]), 9)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("seed", range(30))
def test_placing_many_at_a_time_fills_rows_as_placing_one_by_one_does(seed):
    random = np.random.default_rng(seed)
    capacity, count = int(random.integers(1, 60)), int(random.integers(1, 150))
    spread = random.integers(1, capacity + 1, count)
    short = np.minimum(capacity, random.geometric(0.2, count))
    lengths = spread if seed % 2 else short
    rows = best_fit(lengths, capacity)
    assert sorted(rows.samples.tolist()) == list(range(count))
    assert sorted((capacity - rows.tokens(lengths)).tolist()) == rooms_one_by_one(lengths.tolist(), capacity)


def test_dialogues_take_hardly_more_rows_than_their_tokens_need():
    lengths = long_tailed(20_000, 4096)
    fewest = -(-int(lengths.sum()) // 4096)
    assert fewest <= len(best_fit(lengths, 4096)) <= fewest + 1


@pytest.mark.parametrize(("lengths", "number", "length"), [([3, 11], 1, 11), ([0, 3], 0, 0)])
def test_a_sample_that_can_lie_in_no_row_is_refused(lengths, number, length):
    with pytest.raises(ValueError, match=f"sample {number} has {length} tokens: must be 1 to 10, to lie in a row"):
        best_fit(np.array(lengths), 10)


@pytest.mark.nightly
def test_a_million_samples_are_packed_in_seconds():
    lengths = long_tailed(1_000_000, 8192)
    begin = time.perf_counter()
    epochs = Epochs(lengths, 8192, seed=1, stream=0)
    packed = time.perf_counter()
    epochs.epoch(0)
    print(f"packed in {packed - begin:.2f} s, an epoch's order in {time.perf_counter() - packed:.2f} s")
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("capacity", [64, None])
def test_every_epoch_has_each_sample_once_and_equally_many_rows_in_another_order(capacity):
    lengths = long_tailed(500, 300) // 6 + 1
    epochs = Epochs(lengths, capacity, seed=1, stream=0)
    found = [rows_of(epochs.epoch(number)) for number in range(3)]
    for rows in found:
        assert len(rows) == len(epochs)
        assert sorted(sample for row in rows for sample in row) == list(range(500))
        assert all(lengths[row].sum() <= (capacity or 300) for row in rows)
    assert found[0] != found[1] != found[2]


def test_other_samples_share_a_row_in_another_epoch():
    epochs = Epochs(long_tailed(500, 300) // 6 + 1, 64, seed=1, stream=0)
    before, after = ({frozenset(row) for row in rows_of(epochs.epoch(number)) if len(row) > 1} for number in (0, 1))
    assert len(before & after) < 0.1 * len(before)


def test_rows_come_in_another_order_in_another_epoch_though_the_same_samples_share_them():
    epochs = Epochs(np.random.default_rng(0).permutation(60) + 1, 64, seed=1, stream=0)  # no two of one length
    before, after = (rows_of(epochs.epoch(number)) for number in (0, 1))
    assert sorted(before) == sorted(after)
    assert before != after


def test_an_epoch_is_no_other_at_its_beginning_than_at_its_end():
    lengths = long_tailed(20_000, 4096)
    epochs = Epochs(lengths, 4096, seed=1, stream=0)
    counts = np.diff(epochs.epoch(0).begins)
    first, second = np.array_split(counts, 2)
    assert first.mean() == pytest.approx(second.mean(), rel=0.1)


def test_a_row_of_a_run_is_the_same_whatever_was_asked_before():
    lengths = long_tailed(200, 300) // 6 + 1
    walked = Epochs(lengths, 64, seed=1, stream=0)
    rows = [walked.row(number) for number in range(3 * len(walked))]
    for number in (2 * len(walked) + 3, len(walked) - 1, len(walked)):
        assert Epochs(lengths, 64, seed=1, stream=0).row(number) == rows[number]
    other_seed, other_stream = Epochs(lengths, 64, 2, 0), Epochs(lengths, 64, 1, 1)
    assert all([one.row(k) for k in range(len(one))] != rows[: len(one)] for one in (other_seed, other_stream))


def test_tokens_of_a_runs_first_rows_are_those_of_their_samples():
    lengths = long_tailed(200, 300) // 6 + 1
    epochs = Epochs(lengths, 64, seed=1, stream=0)
    for count in (0, 1, len(epochs) - 1, len(epochs), 2 * len(epochs) + 5):
        assert epochs.tokens(count) == sum(int(lengths[epochs.row(number)].sum()) for number in range(count))


def test_in_file_order_a_row_comes_by_its_first_sample_in_the_file():
    rows = best_fit(np.array([4, 2, 7, 3, 6]), 10).in_file_order()
    assert rows_of(rows) == [[4, 0], [1], [2, 3]]


def test_padding_is_what_rows_hold_beside_tokens():
    lengths = np.array([4, 2, 7, 3, 6])
    packed = fill_of(best_fit(lengths, 10), lengths, 10, together=2)
    assert (packed.rows, packed.samples, packed.tokens, packed.padding) == (3, 5, 22, pytest.approx(8 / 30))
    # In twos: 4 and 2 as long as 4, 7 and 3 as long as 7, 6 alone.
    assert fill_of(one_each(5), lengths, None, together=2).padding == pytest.approx(1 - 22 / (4 + 4 + 7 + 7 + 6))
    assert str(packed) == "5 samples in 3 rows, 1.67 a row; 26.7% of positions are padding"
