import numpy as np
import pytest
from support.text import flat, random_documents, write_dataset

from megatron_lite.data.samples import GPTDataset, KeyedOrder, file_order
from megatron_lite.errors import DataError

KEYED = KeyedOrder(seed=5)


def rows(tokens, sequence_length):
    samples = (len(tokens) - 1) // sequence_length
    return [tokens[i * sequence_length : (i + 1) * sequence_length + 1] for i in range(samples)]


@pytest.mark.parametrize("sequence_length", [1, 7, 64])
def test_in_file_order_samples_are_the_tokens_cut_with_one_token_of_overlap(tmp_path, sequence_length):
    documents = random_documents(np.random.default_rng(0), 40)
    dataset = GPTDataset(write_dataset(tmp_path / "d", documents), sequence_length, file_order)
    expected = rows(flat(documents), sequence_length)
    assert dataset.read(0, len(dataset)).tolist() == expected
    assert dataset.read(0, 1).dtype == np.int64


def test_the_dropped_tail_is_counted(tmp_path):
    for tokens, dropped in ((9, 0), (10, 1), (12, 3), (13, 0)):
        source = write_dataset(tmp_path / "d", [[list(range(tokens))]])
        assert GPTDataset(source, 4, file_order).dropped_tokens == dropped


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own(tmp_path):
    source = write_dataset(tmp_path / "d", [[list(range(1001))]])
    dataset = GPTDataset(source, 10, KEYED)
    epochs = [(dataset.read(e * 100, 100)[:, 0] // 10).tolist() for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_read_goes_on_from_one_epoch_into_the_next(tmp_path):
    dataset = GPTDataset(write_dataset(tmp_path / "d", [[list(range(71))]]), 10, KEYED)
    one_by_one = np.concatenate([dataset.read(i, 1) for i in range(30)])
    assert np.array_equal(dataset.read(0, 30), one_by_one)
    assert np.array_equal(dataset.read(5, 19), one_by_one[5:24])


def test_data_added_behind_a_shorter_file_leaves_the_cut_of_its_samples(tmp_path):
    short = GPTDataset(write_dataset(tmp_path / "short", [[list(range(50))]]), 10, file_order)
    long = GPTDataset(write_dataset(tmp_path / "long", [[list(range(50))], [list(range(200))]]), 10, file_order)
    assert short.read(0, len(short)).tolist() == long.read(0, len(short)).tolist()


def test_a_range_of_sequences_is_read_alone(tmp_path):
    documents = [[list(range(10 * i, 10 * i + 10))] for i in range(6)]
    dataset = GPTDataset(write_dataset(tmp_path / "d", documents), 4, file_order, range(2, 5))
    assert dataset.read(0, len(dataset)).tolist() == rows(list(range(20, 50)), 4)
    assert len(dataset) == 7
    assert dataset.dropped_tokens == 1


def test_too_few_tokens_for_one_sample_are_refused(tmp_path):
    source = write_dataset(tmp_path / "d", [[[1, 2, 3]]])
    with pytest.raises(DataError, match=r"hold 3 tokens; one sample of sequence_length 3 takes 4"):
        GPTDataset(source, 3, file_order)
    assert GPTDataset(source, 2, file_order).read(0, 1).tolist() == [[1, 2, 3]]


def test_a_negative_sample_is_refused(tmp_path):
    with pytest.raises(IndexError):
        GPTDataset(write_dataset(tmp_path / "d", [[[1, 2, 3]]]), 2, file_order).read(-1, 1)
