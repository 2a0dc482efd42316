"""Lines of a file: whole or not there, also where the disk or the process breaks off."""

import errno
import json
import os

import pytest

from megatron_lite.errors import DataError, UsageError
from megatron_lite.serving.records import opened_records

ROWS = [{"text": "one\nline"}, {"text": "ü\u2028"}]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_rows_are_lines_after_those_that_are_there(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"old": 1}\n\n')
    with opened_records(path) as records:
        assert records.rows == ((1, {"old": 1}),)
        records.add(ROWS)
        records.add(ROWS[:1])
    assert [json.loads(line) for line in path.read_bytes().split(b"\n") if line] == [{"old": 1}, *ROWS, ROWS[0]]


@pytest.mark.parametrize("left", ['{"half": ', '{"half": "a', "{"])
def test_what_a_crash_left_of_a_line_is_set_aside_and_told(tmp_path, left, caplog):
    path = tmp_path / "out.jsonl"
    path.write_text('{"whole": 1}\n' + left)
    with opened_records(path) as records:
        records.add(ROWS)
    assert lines(path)[0] == {"whole": 1} and path.read_text().count("half") == 0
    assert (tmp_path / "out.jsonl.torn").read_text() == f"{left}\n"
    assert caplog.messages == [f"{path} ended within a line, which is set aside in {path}.torn"]
    assert len(records.rows) == 1


def test_a_whole_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}')
    with opened_records(path) as records:
        records.add([{"c": 3}])
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n{"c":3}\n'
    assert [row for _, row in records.rows] == [{"a": 1}, {"b": 2}]


def test_rows_that_the_disk_takes_in_part_are_not_there(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    real = os.write

    def full_after_some(descriptor: int, text: bytes) -> int:
        if len(text) <= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, text[:10])

    with opened_records(path) as records:
        records.add([{"before": 1}])
        monkeypatch.setattr(os, "write", full_after_some)
        with pytest.raises(OSError, match="No space left"):
            records.add(ROWS)
        monkeypatch.undo()
        assert lines(path) == [{"before": 1}]
        records.add([{"after": 1}])
    assert lines(path) == [{"before": 1}, {"after": 1}]


def test_rows_are_on_the_disk_when_they_are_added(tmp_path, monkeypatch):
    synced = []
    with opened_records(tmp_path / "out.jsonl") as records:
        real = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), real(descriptor))
        )
        records.add([{"a": 1}])
    assert synced == [len('{"a":1}\n')]


def test_one_process_writes_a_file_at_a_time(tmp_path):
    path = tmp_path / "out.jsonl"
    with opened_records(path), pytest.raises(UsageError, match=r"out\.jsonl is being written by another process"):
        opened_records(path).__enter__()
    with opened_records(path) as records:
        records.add(ROWS)


def test_a_line_that_is_no_object_is_named(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"a": 1}\nno JSON\n')
    with pytest.raises(DataError, match=r"out\.jsonl line 2 is no JSON object"):
        opened_records(path).__enter__()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere/out\.jsonl cannot be written: No such file"):
        opened_records(tmp_path / "nowhere" / "out.jsonl").__enter__()
