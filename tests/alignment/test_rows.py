"""Files of rows: JSONL, compressed, Parquet, and lines that are no rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_lite.alignment import rows
from megatron_lite.alignment.rows import BadRow, parsed, place_of, read_rows
from megatron_lite.errors import DataError

CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"é {number}"}, {"role": "assistant", "content": "\u2028"}]}
    for number in range(5)
]


def found(path: Path) -> list[tuple[int, Any]]:
    return [(number, parsed(row)) for part in read_rows(path) for number, row in part]


def lines(some: list[Any]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in some)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_lines_are_numbered_from_0_and_blank_ones_are_no_rows_but_count(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(rows, "AT_ONCE_BYTES", 60)  # a row or two at once
    content = b"\n" + lines(ROWS[:2]) + b"  \r\n" + lines(ROWS[2:]).removesuffix(b"\n")
    packed = {"jsonl": content, "jsonl.gz": gzip.compress(content)}.get(ending, zstandard.compress(content))
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(packed)
    assert found(path) == list(zip((1, 2, 4, 5, 6), ROWS, strict=True))
    assert [part.read for part in read_rows(path)][-1] == len(packed)
    assert place_of(path, 4) == f"{path} line 5"


def test_a_table_has_the_same_rows_without_the_fields_that_only_others_have(tmp_path, monkeypatch):
    """Parquet gives each object of a column the fields of all, and null where it has none."""
    monkeypatch.setattr(rows, "AT_ONCE_ROWS", 2)
    others = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([*ROWS, {"messages": others}]), path)
    del others[0]["content"]
    assert found(path) == list(enumerate([*ROWS, {"messages": others}]))
    assert place_of(path, 3) == f"{path} row 3"
    assert [part.read for part in read_rows(path)][-1] == path.stat().st_size


@pytest.mark.parametrize(
    ("line", "reason", "said"),
    [
        (b'{"a": ', "no JSON", r"is no JSON \("),
        (b"[1]", "no object", "is no object but a JSON list: a file must have an object a line"),
        (b"3", "no object", "is no object but a JSON int"),
        (b'{"a": "\xff"}', "broken text", "has broken UTF-8"),
        (b'{"a": "\\ud800"}', "broken text", "half of a surrogate pair"),
        (b"[" * 100_000, "no JSON", "is no JSON"),
    ],
)
def test_a_line_that_is_no_row_says_why(line, reason, said):
    with pytest.raises(BadRow, match=said) as caught:
        parsed(line)
    assert caught.value.reason == reason


def test_numbers_that_are_no_json_are_read_so_that_a_check_can_name_them():
    assert repr(parsed(b'{"margin": NaN, "score": -Infinity}')) == "{'margin': nan, 'score': -inf}"


def test_a_file_that_cannot_be_read_or_not_to_its_end_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        found(tmp_path / "none.jsonl")
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS))[:-12])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: compressed data is damaged or cut short"):
        found(path)


@pytest.mark.parametrize("place", [0.3, 0.999])
def test_a_damaged_table_is_named_with_the_row_behind_which_nothing_can_be_read(tmp_path, place):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [f"{number}" * 50 for number in range(500)]}), path, compression="none",
                   use_dictionary=False, write_page_checksum=True)  # fmt: skip
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet: damaged from row 0 on \("):
        found(path)
