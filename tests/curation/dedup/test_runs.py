"""The files between steps: what is written is read, by range and by shard, and damage or a mixture is refused."""

import numpy as np
import pytest

from megatron_lite.curation.dedup.runs import (
    Range,
    differs_from_previous,
    gather,
    id_of_row,
    ids_of_rows,
    order_by_key,
    pack_ids,
    read_columns,
    read_findings,
    write_columns,
    write_findings,
)
from megatron_lite.errors import DataError, UsageError

SETTINGS = {"step": "test"}


def write_run(path, keys):
    write_columns(path, {"key": np.array(keys, np.uint64)}, SETTINGS)
    return path


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ranges_take_every_key_once_with_where_it_came_from(tmp_path, count):
    keys = sorted([0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 // 3, 2**64 // 3 + 1, 2**64 // 7, 6 * 2**64 // 7])
    runs = [write_run(tmp_path / "a", keys), write_run(tmp_path / "b", []), write_run(tmp_path / "c", [5, 5])]
    parts = [gather(runs, ("key",), Range(number, count), SETTINGS) for number in range(count)]
    found = [
        (int(shard), int(place), int(key))
        for part in parts
        for shard, place, key in zip(part.shard, part.place, part.columns["key"], strict=True)
    ]
    assert sorted(found) == [(0, i, key) for i, key in enumerate(keys)] + [(2, 0, 5), (2, 1, 5)]


def test_a_shard_reads_its_own_findings_from_every_range_in_order(tmp_path):
    paths = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    for path, shards, rows in zip(paths, ([3, 0, 3], [], [1, 3]), ([9, 8, 7], [], [6, 5]), strict=True):
        columns = {"shard": np.array(shards, np.uint32), "row": np.array(rows, np.uint32)}
        write_findings(path, columns, SETTINGS)
    assert read_findings(paths, ("row",), 3, SETTINGS)["row"].tolist() == [9, 7, 5]
    assert read_findings(paths, ("row",), 2, SETTINGS)["row"].tolist() == []


def test_ids_of_any_length_are_found_by_row(tmp_path):
    ids = [["a/0/0", "", "é/1/22", "x" * 300], [], ["last"]]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, some in zip(paths, ids, strict=True):
        write_columns(path, pack_ids(some), SETTINGS)
    assert [id_of_row(read_columns(paths[0], SETTINGS), row) for row in range(4)] == ids[0]
    assert ids_of_rows(paths, np.array([2, 0, 0]), np.array([0, 3, 2]), SETTINGS) == ["last", "x" * 300, "é/1/22"]


def test_a_file_cut_short_anywhere_is_refused_by_name(tmp_path):
    whole = write_run(tmp_path / "whole", [1, 2, 3]).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(DataError, match="cut: no file of hashes, or cut short"):
            read_columns(tmp_path / "cut", SETTINGS)


def test_files_made_with_other_settings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"made with .*test.*, where .*other.* is asked for"):
        gather([write_run(tmp_path / "run", [1])], ("key",), Range(0, 1), {"step": "other"})


def test_equal_columns_are_equal_bytes(tmp_path):
    assert write_run(tmp_path / "a", [1, 2]).read_bytes() == write_run(tmp_path / "b", [1, 2]).read_bytes()


def test_equal_keys_stand_side_by_side_even_where_halves_collide():
    generator = np.random.default_rng(0)
    for distinct in (3, 2**60):
        high, low = generator.integers(distinct, size=(2, 200), dtype=np.uint64)
        order = order_by_key(high, low)
        keys = list(zip(high[order].tolist(), low[order].tolist(), strict=True))
        assert keys == sorted(zip(high.tolist(), low.tolist(), strict=True))
        starts = differs_from_previous(high[order], low[order])
        assert [key for key, start in zip(keys, starts, strict=True) if start] == sorted(set(keys))


def test_a_run_of_more_keys_than_places_have_numbers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_lite.curation.dedup.runs.MOST_ROWS", 2)
    with pytest.raises(DataError, match="run: 3 keys of one shard, more than 2"):
        gather([write_run(tmp_path / "run", [1, 2, 3])], ("key",), Range(0, 1), SETTINGS)
