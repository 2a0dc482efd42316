import threading

import numpy as np
import pytest
from support.text import write_dataset

from megatron_lite.data.blend import BlendedDataset, Phase
from megatron_lite.data.loader import Loader
from megatron_lite.data.samples import GPTDataset, KeyedOrder
from megatron_lite.errors import UsageError

GLOBAL = 12


@pytest.fixture
def dataset(tmp_path):
    parts = [write_dataset(tmp_path / str(i), [[list(range(1000 * i, 1000 * i + 401))]]) for i in range(2)]
    return BlendedDataset(
        [GPTDataset(part, 8, KeyedOrder(3, i)) for i, part in enumerate(parts)], [Phase(0, [0.7, 0.3])]
    )


@pytest.fixture
def loader():
    """Makes loaders and closes them."""
    made = []

    def make(dataset, data_rank=0, data_size=1, global_batch_size=GLOBAL):
        made.append(
            Loader(dataset, batch_size=lambda consumed: global_batch_size, data_rank=data_rank, data_size=data_size)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_batch_is_the_next_samples_in_order(dataset, loader):
    batch = loader(dataset).batch(24)
    assert batch.shape == (GLOBAL, 9)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, dataset.read(24, GLOBAL))


@pytest.mark.parametrize("data_size", [2, 3, 4, 12])
def test_the_ranks_batches_put_together_are_one_ranks_batch(dataset, loader, data_size):
    for consumed in (0, 12, 108):
        whole = loader(dataset).batch(consumed)
        parts = [loader(dataset, rank, data_size).batch(consumed) for rank in range(data_size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_resumed_loader_goes_on_with_the_same_batches(dataset, loader):
    first = loader(dataset, 1, 3)
    straight = [first.batch(GLOBAL * step) for step in range(12)]
    resumed = loader(dataset, 1, 3)
    for step in range(5, 12):
        assert np.array_equal(resumed.batch(GLOBAL * step), straight[step])


def test_the_order_of_samples_does_not_depend_on_the_batch_size(dataset, loader):
    small, large = loader(dataset, global_batch_size=4), loader(dataset, global_batch_size=12)
    assert np.array_equal(np.concatenate([small.batch(c) for c in (0, 4, 8)]), large.batch(0))


def test_another_place_than_the_prefetched_one_is_read_right(dataset, loader):
    jumping = loader(dataset)
    jumping.batch(0)
    for consumed in (240, 12, 12, 0):
        assert np.array_equal(jumping.batch(consumed), loader(dataset).batch(consumed))


@pytest.mark.parametrize("data_size", [1, 2])
def test_the_following_batch_is_read_by_another_thread(loader, data_size):
    readers = {}

    class Recorder:
        def read(self, first, count):
            readers.update(dict.fromkeys(range(first, first + count), threading.current_thread()))
            return np.zeros((count, 2), np.int64)

    recording = loader(Recorder(), data_size - 1, data_size, global_batch_size=4)
    recording.batch(0)
    recording.batch(4)
    assert readers[3] is threading.main_thread()
    assert readers[7] is not threading.main_thread()


def test_a_failure_in_the_thread_is_raised_where_its_batch_is_asked_for(loader):
    class Failing:
        def read(self, first, count):
            if first <= 3 < first + count:
                raise ValueError("sample 3")
            return np.zeros((count, 2), np.int64)

    failing = loader(Failing(), global_batch_size=2)
    failing.batch(0)
    with pytest.raises(ValueError, match="sample 3"):
        failing.batch(2)


@pytest.mark.parametrize(("data_rank", "data_size"), [(0, 5), (3, 3), (-1, 3)])
def test_ranks_that_the_batch_does_not_divide_over_are_refused(dataset, loader, data_rank, data_size):
    with pytest.raises(UsageError, match=r"multiple of|is not one of"):
        loader(dataset, data_rank, data_size).batch(0)
