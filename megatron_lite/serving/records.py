"""Files of JSON lines to which one process adds, a line whole or not at all, and on the disk before anybody is told."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_lite.errors import DataError, UsageError
from megatron_lite.files import sync

Row = dict[str, Any]

log = logging.getLogger("megatron_lite")


@dataclass(frozen=True)
class Records:
    """An open file. `rows` are those that it had, with the numbers of their lines."""

    path: Path
    descriptor: int
    rows: tuple[tuple[int, Row], ...]

    def add(self, rows: Sequence[Row]) -> None:
        """All of them, or none. Raises OSError. One thread at a time."""
        before = os.fstat(self.descriptor).st_size
        text = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        try:
            while text:
                text = text[os.write(self.descriptor, text) :]
            os.fsync(self.descriptor)
        except OSError:
            os.ftruncate(self.descriptor, before)
            raise


@contextmanager
def opened_records(path: Path) -> Iterator[Records]:
    """Of a file that is there, or is made. What a crash left of a line, which nobody was told of, goes to
    PATH.torn, and a warning says so.

    Raises UsageError where it cannot be written or another process does so, DataError for a line that is no object.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"--judgements: {path} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"--judgements: {path} is being written by another process") from None
        sync(path.absolute().parent)
        yield Records(path, descriptor, tuple(_rows(path, descriptor)))
    finally:
        os.close(descriptor)


def _rows(path: Path, descriptor: int) -> Iterator[tuple[int, Row]]:
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest and _is_object(rest):
        os.write(descriptor, b"\n")  # an editor left its end out
        whole += newline + rest
    elif rest:
        torn = Path(f"{path}.torn")
        with torn.open("ab") as file:
            file.write(rest + b"\n")
        sync(torn)
        os.ftruncate(descriptor, len(whole) + len(newline))
        log.warning("%s ended within a line, which is set aside in %s", path, torn)
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line.strip():
            continue
        if not _is_object(line):
            raise DataError(f"{path} line {number} is no JSON object: judgements cannot go on in this file")
        yield number, orjson.loads(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
