"""Opening inputs, local or at any fsspec URL, so that a failing disk or network is not taken for a damaged file."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from megatron_lite.errors import MegatronLiteError

BUFFER = 1 << 17


@contextlib.contextmanager
def open_input(path: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file. Raises FileNotFoundError or PermissionError; MegatronLiteError where reading fails."""
    try:
        # By itself, fsspec takes as long to find out that a path is local as a small file takes to be read.
        opened = fsspec.open(path, "rb").open() if "://" in path else Path(path).open("rb", buffering=0)  # noqa: SIM115
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever a remote file system's client raises
        raise _unread(path, error) from error
    with opened, io.BufferedReader(_Watched(path, opened), BUFFER) as file:
        yield file


def read_up_to(file: io.BufferedIOBase, limit: int) -> bytes:
    """The rest of a file, or a little more than `limit` bytes of it, in no more memory than there is to read."""
    pieces, size = [], 0
    while size <= limit and (piece := file.read(BUFFER)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


class _Watched(io.RawIOBase):
    def __init__(self, path: str, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what a BufferedReader passes
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # whatever a remote file system's client raises
            raise _unread(self._path, error) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)


def _unread(path: str, error: Exception) -> MegatronLiteError:
    return MegatronLiteError(f"{path}: reading failed: {type(error).__name__}: {error}; the same command goes on")
