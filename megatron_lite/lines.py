"""Lines of a file of any size in bounded memory, each with the place where it begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from math import inf
from typing import overload

BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class TooLong:
    """In place of a line longer than the limit."""

    length: int


@overload
def read_lines(file: BufferedIOBase, limit: None, begin: int = 0, end: float = inf) -> Iterator[tuple[int, bytes]]: ...


@overload
def read_lines(
    file: BufferedIOBase, limit: int, begin: int = 0, end: float = inf
) -> Iterator[tuple[int, bytes | TooLong]]: ...


def read_lines(
    file: BufferedIOBase, limit: int | None, begin: int = 0, end: float = inf
) -> Iterator[tuple[int, bytes | TooLong]]:
    """(offset, line without its \\n) of every line that begins in the bytes [begin, end) of the file.

    So ranges that cover a file give each of its lines once. A `begin` above 0 needs a file that can seek. The file is
    buffered, so that one whose end is damaged gives what stands before the damage. None: no limit.
    """
    offset = begin
    if begin:
        # The line that the byte before belongs to is another range's.
        file.seek(begin - 1)
        offset += _skip_line(file, end - begin + 1) - 1
    most = inf if limit is None else limit
    held: list[bytes] = []  # what has been read of the line at `offset`; nothing is held of one beyond the limit
    length = 0
    while offset < end and (block := file.read1(BLOCK)):
        *ended, rest = block.split(b"\n")
        for piece in ended:
            length += len(piece)
            if length > most:
                yield offset, TooLong(length)
            else:
                yield offset, b"".join([*held, piece]) if held else piece
            offset += length + 1
            if offset >= end:
                return
            held, length = [], 0
        length += len(rest)
        if length > most:
            held = []
        elif rest:
            held.append(rest)
    if offset < end and length:
        yield offset, TooLong(length) if length > most else b"".join(held)


def _skip_line(file: BufferedIOBase, most: float) -> int:
    """Go to the beginning of the next line, if it comes within so many bytes; returns the bytes passed."""
    passed = 0
    while passed < most and (piece := file.readline(int(min(BLOCK, most - passed)))):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed
