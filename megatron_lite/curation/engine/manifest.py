"""manifest.jsonl of a stage: one row a finished task, appended when its files are in place."""

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_lite.files import partial_path, publish

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class File:
    """A finished file of a stage. Its content is its identity, wherever it lies."""

    path: str = field(metadata={"identity": False})
    bytes: int
    xxh3: str  # of the content, 64 bits in hexadecimal


@dataclass(frozen=True)
class Row:
    """What a finished task did."""

    task: str
    key: str  # fingerprint of the work and its inputs: an equal task need not be done again
    input_bytes: int
    outputs: dict[str, list[File]]  # by kind
    counts: dict[str, Any]  # what the work returned
    seconds: float
    cpu_seconds: float


def read_rows(folder: Path) -> dict[str, Row]:
    """Rows by task, the last one of each; a line that a crash cut short is no row. Paths are relative in the file."""
    path = folder / NAME
    if not path.exists():
        return {}
    *lines, _ = path.read_bytes().split(b"\n")  # behind the last line's end: nothing, or a line cut short
    rows = {}
    for line in lines:
        record = orjson.loads(line)
        record["outputs"] = {
            kind: [File(str(folder / file["path"]), file["bytes"], file["xxh3"]) for file in files]
            for kind, files in record["outputs"].items()
        }
        rows[record["task"]] = Row(**record)
    return rows


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Replace the manifest as a whole."""
    path = folder / NAME
    partial_path(path).write_bytes(b"".join(_line(folder, row) for row in rows))
    publish(path)


def append_row(folder: Path, row: Row) -> None:
    with (folder / NAME).open("ab") as file:
        file.write(_line(folder, row))
        file.flush()
        os.fsync(file.fileno())


def _line(folder: Path, row: Row) -> bytes:
    record = dataclasses.asdict(row)
    for file in (file for files in record["outputs"].values() for file in files):
        file["path"] = str(Path(file["path"]).relative_to(folder))
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
