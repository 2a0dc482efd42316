import errno
import fcntl
import multiprocessing
import os
import time

import numpy as np
import pytest
from support.text import write_dataset

from megatron_lite.data import _helpers, cache
from megatron_lite.data.cache import cached
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.samples import GPTDataset, file_order
from megatron_lite.errors import DataError


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch):
    monkeypatch.setattr(cache, "WORTH_KEEPING", 1)


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
        assert cached(tmp_path / "cache", "name", dataset.fingerprint, {"a": 1}, 1, build).tolist() == [1, 2]
    assert build.calls == 1


def test_other_parameters_and_names_are_other_arrays(tmp_path, dataset):
    build = Builder([1], [2], [3])
    assert cached(tmp_path / "cache", "name", dataset.fingerprint, {"a": 1}, 1, build).tolist() == [1]
    assert cached(tmp_path / "cache", "name", dataset.fingerprint, {"a": 2}, 1, build).tolist() == [2]
    assert cached(tmp_path / "cache", "other", dataset.fingerprint, {"a": 1}, 1, build).tolist() == [3]


def test_without_a_directory_nothing_is_kept(tmp_path, dataset):
    build = Builder([1])
    before = set(tmp_path.iterdir())
    for _ in range(2):
        cached(None, "name", dataset.fingerprint, {}, 1, build)
    assert build.calls == 2
    assert set(tmp_path.iterdir()) == before


def test_what_is_quickly_built_is_not_kept(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(cache, "WORTH_KEEPING", 100)
    build = Builder([1])
    for _ in range(2):
        assert cached(tmp_path / "cache", "name", dataset.fingerprint, {}, 99, build).tolist() == [1]
    assert build.calls == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_cut_short_is_built_anew(tmp_path, dataset, keep):
    build = Builder([1, 2])
    cached(tmp_path / "cache", "name", dataset.fingerprint, {}, 1, build)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert cached(tmp_path / "cache", "name", dataset.fingerprint, {}, 1, build).tolist() == [1, 2]
    assert build.calls == 2
    assert cached(tmp_path / "cache", "name", dataset.fingerprint, {}, 1, build).tolist() == [1, 2]
    assert build.calls == 2


def test_nothing_but_whole_files_stays_behind(tmp_path, dataset):
    cached(tmp_path / "cache", "name", dataset.fingerprint, {}, 1, Builder([1]))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_a_data_set_written_anew_at_the_same_place_gets_its_own_index(tmp_path):
    def samples(documents):
        source = write_dataset(tmp_path / "d", documents)
        # The same time to the nanosecond, as on file systems that keep whole seconds.
        for suffix in ("bin", "idx"):
            os.utime(tmp_path / f"d.{suffix}", ns=(10**18, 10**18))
        dataset = GPTDataset(source, 2, file_order, cache_dir=tmp_path / "cache")
        return dataset.read(0, len(dataset)).tolist()

    assert samples([[[1, 2, 3]], [[4]]]) == [[1, 2, 3]]
    assert samples([[[5]], [[6, 7, 8]]]) == [[5, 6, 7]]
    assert len(list((tmp_path / "cache").glob("samples-*"))) == 2


def build_slowly(directory, results):
    def build():
        with (directory / "built").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        return np.arange(1000)

    results.put(int(cached(directory / "cache", "name", "print", {}, 1, build).sum()))


def test_of_several_processes_one_builds_and_the_others_wait_for_it(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=build_slowly, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [results.get() for _ in range(4)] == [499500] * 4
    assert (tmp_path / "built").read_text() == "x"


def test_a_process_killed_while_it_built_leaves_no_lock_behind(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=build_slowly, args=(tmp_path, context.Queue()))
    process.start()
    while not (tmp_path / "built").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    build = Builder([1])
    assert cached(tmp_path / "cache", "name", "print", {}, 1, build).tolist() == [1]
    assert build.calls == 1


def test_without_locks_in_the_file_system_every_process_builds_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert cached(tmp_path / "cache", "name", "print", {}, 1, Builder([1])).tolist() == [1]
    assert "no locks on this file system" in caplog.text


def test_a_data_set_found_good_is_not_looked_through_again_until_its_files_change(tmp_path, monkeypatch):
    write_dataset(tmp_path / "d", [[[1, 2, 3]]])
    open_indexed(tmp_path / "d", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(_helpers, "check_sequences", None)
        assert open_indexed(tmp_path / "d", tmp_path / "cache").sequence(0).tolist() == [1, 2, 3]
        with pytest.raises(TypeError):
            open_indexed(tmp_path / "d")
    raw = bytearray((tmp_path / "d.idx").read_bytes())
    raw[34] = 2  # the sequence's length
    (tmp_path / "d.idx").write_bytes(raw)
    with pytest.raises(DataError, match="describes 4 bytes"):
        open_indexed(tmp_path / "d", tmp_path / "cache")
