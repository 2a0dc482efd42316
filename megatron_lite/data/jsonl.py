"""Lines of JSONL files, plain, .gz or .zst, in batches that know where they stood."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Lines of one file, without their ends."""

    path: str
    first_line: int  # number of the first one, from 1
    lines: list[bytes]
    position: int  # bytes of all files read so far, as they lie on the disk


class MalformedLine(Exception):
    """What is wrong with a line, in a few words: `kind`, of which there are few, and perhaps a detail."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def read_batches(paths: Sequence[str | Path], batch_bytes: int) -> Iterator[Batch]:
    """The lines of all files in order, about `batch_bytes` of text at a time; a batch never spans two files.

    Raises DataError for a file that cannot be read, or whose compressed data is damaged or cut short.
    """
    before = 0  # bytes of the files already read
    for path in paths:
        line = 1
        try:
            with Path(path).open("rb") as raw, decompressed(raw, str(path)) as text:
                while lines := text.readlines(batch_bytes):
                    yield Batch(str(path), line, [one.rstrip(b"\r\n") for one in lines], before + raw.tell())
                    line += len(lines)
                before += raw.tell()
        except DAMAGE as error:
            raise DataError(
                f"{path}: compressed data is damaged or cut short after line {line - 1} ({error})"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None


def total_bytes(paths: Sequence[str | Path]) -> int:
    """Size of all files on the disk. Raises DataError for one that is missing."""
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{path} is no file")
    return sum(Path(path).stat().st_size for path in paths)


def parse_texts(line: bytes, keys: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """The strings that a line's object holds under `keys`, then those under `optional`: "" where there is none.

    Raises MalformedLine.
    """
    if not line.strip():
        raise MalformedLine("blank line")
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MalformedLine("no valid JSON" + (", broken UTF-8" if _is_broken(line) else ""), str(error)) from None
    if not isinstance(document, dict):
        raise MalformedLine(f"a JSON {type(document).__name__}, not an object")
    for key in keys:
        if key not in document:
            raise MalformedLine(f"no key {key!r}")
        if not isinstance(document[key], str):
            raise MalformedLine(f"{key!r} holds a {type(document[key]).__name__}, not a string")
    found = (document.get(key) for key in optional)
    return [document[key] for key in keys] + [value if isinstance(value, str) else "" for value in found]


def _is_broken(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
