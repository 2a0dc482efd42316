"""Answers that a model gave, on disk, by content: which model, what it was asked. One line of JSON each.

    {"key": hash of all that an answer depends on, "answer": ..}

Lines are appended, a batch at a time, and are on the disk before the next batch is asked. A line that a killed process
left half is cut off when the file is opened next.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_lite.errors import DataError, UsageError


class Answers(Protocol):
    """Where answers are kept."""

    def find(self, asked: Sequence[Any]) -> Any | None:
        """The answer to something; None where it is not kept."""

    def keep(self, answers: Sequence[tuple[Sequence[Any], Any]]) -> None:
        """Of (asked, answer)."""


class Forgotten:
    """Keeps nothing."""

    def find(self, asked: Sequence[Any]) -> Any | None:
        return None

    def keep(self, answers: Sequence[tuple[Sequence[Any], Any]]) -> None:
        del answers


class Cache:
    """A file of answers of one model or of several; `identity` says which is asked. One process at a time has it."""

    def __init__(self, path: Path, identity: str):
        """Raises UsageError for a path that cannot be written, DataError for a file that holds something else."""
        self.path, self.identity = path, identity
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--cache {path}: another evaluation is using it") from None
        except OSError as error:
            raise UsageError(f"--cache {path}: {error.strerror}") from None
        self._found = dict(self._read())

    def find(self, asked: Sequence[Any]) -> Any | None:
        return self._found.get(self._key(asked))

    def keep(self, answers: Sequence[tuple[Sequence[Any], Any]]) -> None:
        """Raises DataError where the disk refuses them."""
        added = {self._key(asked): answer for asked, answer in answers}
        lines = [json.dumps({"key": key, "answer": answer}) for key, answer in added.items()]
        try:
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"--cache {self.path}: {error.strerror}") from None
        self._found |= added

    def close(self) -> None:
        self._file.close()

    def _key(self, asked: Sequence[Any]) -> str:
        return hashlib.sha256(json.dumps([self.identity, *asked]).encode()).hexdigest()

    def _read(self) -> Mapping[str, Any]:
        self._file.seek(0)
        content = self._file.read()
        whole, end, _ = content.rpartition(b"\n")
        self._file.truncate(len(whole) + len(end))
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {row["key"]: row["answer"] for row in rows}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"--cache {self.path}: is no file of answers, or a damaged one") from None
