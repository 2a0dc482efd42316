import os

import numpy as np
import pytest
from support.text import write_dataset

from megatron_lite.data.cache import cached
from megatron_lite.data.samples import GPTDataset, file_order


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "d", [[[1, 2, 3]]])


class Builder:
    def __init__(self, *arrays):
        self.arrays, self.calls = list(arrays), 0

    def __call__(self):
        self.calls += 1
        return np.array(self.arrays[min(self.calls, len(self.arrays)) - 1])


def test_a_second_call_maps_what_the_first_one_built(tmp_path, dataset):
    build = Builder([1, 2])
    for _ in range(2):
        assert cached(tmp_path / "cache", "name", dataset, {"a": 1}, build).tolist() == [1, 2]
    assert build.calls == 1


def test_other_parameters_and_names_are_other_arrays(tmp_path, dataset):
    build = Builder([1], [2], [3])
    assert cached(tmp_path / "cache", "name", dataset, {"a": 1}, build).tolist() == [1]
    assert cached(tmp_path / "cache", "name", dataset, {"a": 2}, build).tolist() == [2]
    assert cached(tmp_path / "cache", "other", dataset, {"a": 1}, build).tolist() == [3]


def test_without_a_directory_nothing_is_kept(tmp_path, dataset):
    build = Builder([1])
    before = set(tmp_path.iterdir())
    for _ in range(2):
        cached(None, "name", dataset, {}, build)
    assert build.calls == 2
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_cut_short_is_built_anew(tmp_path, dataset, keep):
    build = Builder([1, 2])
    cached(tmp_path / "cache", "name", dataset, {}, build)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert cached(tmp_path / "cache", "name", dataset, {}, build).tolist() == [1, 2]
    assert build.calls == 2
    assert cached(tmp_path / "cache", "name", dataset, {}, build).tolist() == [1, 2]
    assert build.calls == 2


def test_nothing_but_whole_files_stays_behind(tmp_path, dataset):
    cached(tmp_path / "cache", "name", dataset, {}, Builder([1]))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_a_data_set_written_anew_at_the_same_place_gets_its_own_index(tmp_path):
    def samples(documents):
        source = write_dataset(tmp_path / "d", documents)
        # The same time to the nanosecond, as on file systems that keep whole seconds.
        for suffix in ("bin", "idx"):
            os.utime(tmp_path / f"d.{suffix}", ns=(10**18, 10**18))
        dataset = GPTDataset(source, 2, file_order, cache_dir=tmp_path / "cache")
        return [dataset[i].tolist() for i in range(len(dataset))]

    assert samples([[[1, 2, 3]], [[4]]]) == [[1, 2, 3]]
    assert samples([[[5]], [[6, 7, 8]]]) == [[5, 6, 7]]
    assert len(list((tmp_path / "cache").iterdir())) == 2
