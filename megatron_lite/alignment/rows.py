"""Rows of a file, JSONL (plain, .gz, .zst) or Parquet, with their numbers in it, from 0."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lite.data.jsonl import read_batches
from megatron_lite.errors import DataError, UsageError

Row = Mapping[str, Any]
PARQUET = b"PAR1"  # how such a file begins
AT_ONCE_BYTES, AT_ONCE_ROWS = 1 << 18, 256


class BadRow(Exception):
    """Why a row cannot be trained on: `reason`, of which there are few, and a sentence's rest about this row."""

    def __init__(self, reason: str, what: str):
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True)
class Rows:
    """Some rows of a file one after the other, as they stand there: lines of JSON, or a table's. `read` counts bytes
    of the file up to their end.
    """

    first: int
    rows: tuple[bytes | Row, ...]
    read: int

    def __iter__(self) -> Iterator[tuple[int, bytes | Row]]:
        """(number, row) of each but blank lines."""
        for number, row in enumerate(self.rows, self.first):
            if not isinstance(row, bytes) or row.strip():
                yield number, row


def read_rows(path: Path) -> Iterator[Rows]:
    """All of a file, some at a time. Raises DataError for one that cannot be read, or not to its end."""
    if is_parquet(path):
        yield from _read_parquet(path)
        return
    for batch in read_batches((path,), AT_ONCE_BYTES):
        yield Rows(batch.first_line - 1, tuple(batch.lines), batch.position)


def is_parquet(path: Path) -> bool:
    """By its content. Raises DataError where there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def place_of(path: Path, number: int) -> str:
    """Where a person finds a row."""
    return f"{path} row {number}" if is_parquet(path) else f"{path} line {number + 1}"


def parsed(row: bytes | Row) -> Row:
    """A line's object. NaN and Infinity, which are no JSON, are read, so that a check can name what holds them.

    Raises BadRow for a line that is no JSON object, and text that is no text.
    """
    if not isinstance(row, bytes):
        return row
    try:
        found = json.loads(row)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError:
        raise BadRow("broken text", "has broken UTF-8, or half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise BadRow("no JSON", f"is no JSON ({error})") from None
    if not isinstance(found, dict):
        kind = "list: a file must have an object a line" if isinstance(found, list) else type(found).__name__
        raise BadRow("no object", f"is no object but a JSON {kind}")
    return found


def _read_parquet(path: Path) -> Iterator[Rows]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            f"{path}: Parquet takes pyarrow, which is missing: pip install 'megatron_lite[data]'"
        ) from None
    first, size = 0, path.stat().st_size
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as table:
            total = table.metadata.num_rows
            for batch in table.iter_batches(AT_ONCE_ROWS):
                rows = tuple(_present(row) for row in batch.to_pylist())
                yield Rows(first, rows, size * (first + len(rows)) // total)
                first += len(rows)
            if first != total:  # the footer has no check sum
                raise pa.ArrowInvalid(f"{total} rows are announced, {first} are there")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged from row {first} on ({' '.join(str(error).split())})") from None


def _present(value: Any) -> Any:
    """Without the fields that are null: in a column of objects each has the fields of all."""
    if isinstance(value, dict):
        return {name: _present(inner) for name, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
