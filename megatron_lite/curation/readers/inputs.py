"""Which files a source has, and how they are cut into slices and dealt to tasks.

All of it is a function of the configuration and of the files' names, sizes and times, so that every run and every
number of workers deals alike.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet

from megatron_lite.curation.config import SourceConfig
from megatron_lite.curation.readers.opening import open_input
from megatron_lite.errors import UsageError

COMPRESSED = (".gz", ".zst")
EXPANSION = 4  # bytes of text in a compressed byte, roughly: for dealing files to tasks


@dataclass(frozen=True)
class InputFile:
    """A file of a source. `number` is its place in the source, from which its documents have their ids."""

    source: str
    number: int
    path: str  # a local path or an fsspec URL
    name: str  # the path from the pattern's first wildcard on, or below the folder named
    bytes: int
    version: str  # a remote file's ETag, a local one's time of change: what changes with its content


@dataclass(frozen=True)
class Slice:
    """What a reader reads at once: a file, or the part [begin, end) of it in bytes (JSONL) or row groups (Parquet)."""

    file: InputFile
    bytes: int
    begin: int = 0
    end: int | None = None
    weight: int = field(default=0, metadata={"identity": False})  # bytes of text in it, roughly

    @property
    def path(self) -> str:
        return self.file.path


def list_files(name: str, source: SourceConfig) -> list[InputFile]:
    """The files of a source in the order of its paths, sorted within each. Raises UsageError where there are none."""
    files: dict[str, tuple[str, dict[str, Any]]] = {}  # by path: the first of the patterns that find a file counts
    for pattern in source.paths:
        found = list(_find(pattern))
        if not found and source.required:
            raise UsageError(f"sources.{name}.paths: nothing is at {pattern}")
        for path, below, info in found:
            if not any(fnmatch.fnmatch(below, excluded) for excluded in source.exclude):
                files.setdefault(path, (below, info))
    return [
        InputFile(name, number, path, below, info["size"] or 0, _version(info))
        for number, (path, (below, info)) in enumerate(files.items())
    ]


def cut(files: Iterable[InputFile], kind: str, shard_bytes: int) -> Iterator[Slice]:
    """Slices, of about `shard_bytes` where a file can be cut: plain JSONL, and Parquet with several row groups."""
    for file in files:
        if kind == "jsonl" and not file.path.endswith(COMPRESSED):
            yield from _cut_bytes(file, shard_bytes)
        elif kind == "parquet" and file.bytes * EXPANSION > shard_bytes:
            yield from _cut_row_groups(file, shard_bytes)
        else:
            packed = kind == "parquet" or file.path.endswith(COMPRESSED)
            yield Slice(file, file.bytes, weight=file.bytes * (EXPANSION if packed else 1))


def deal(slices: Iterable[Slice], shard_bytes: int, most: int = 10_000) -> list[tuple[Slice, ...]]:
    """Neighbouring slices together, about `shard_bytes` of them a task and `most` at most."""
    tasks: list[tuple[Slice, ...]] = []
    held: list[Slice] = []
    weight = 0
    for one in slices:
        if held and (weight + one.weight > shard_bytes or len(held) == most):
            tasks.append(tuple(held))
            held, weight = [], 0
        held.append(one)
        weight += one.weight
    return [*tasks, tuple(held)] if held else tasks


def _cut_bytes(file: InputFile, shard_bytes: int) -> Iterator[Slice]:
    pieces = max(1, -(-file.bytes // shard_bytes))
    bounds = [file.bytes * piece // pieces for piece in range(pieces + 1)]
    for begin, end in pairwise(bounds):
        yield Slice(file, end - begin, begin, end, weight=end - begin)


def _cut_row_groups(file: InputFile, shard_bytes: int) -> Iterator[Slice]:
    try:
        with open_input(file.path) as raw:
            footer = pyarrow.parquet.ParquetFile(raw).metadata
    except (pyarrow.ArrowException, OSError):
        yield Slice(file, file.bytes, weight=file.bytes)  # its reader says what is wrong with it
        return
    sizes = [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]
    total = max(sum(sizes), 1)
    begin, held = 0, 0
    for number, size in enumerate(sizes):
        if held and held + size > shard_bytes:
            yield Slice(file, file.bytes * held // total, begin, number, weight=held)
            begin, held = number, 0
        held += size
    yield Slice(file, file.bytes * held // total, begin, len(sizes), weight=held)


def _find(pattern: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, path below the pattern's fixed part, what the file system says) of a file, a folder's files, a glob's."""
    system, path = fsspec.core.url_to_fs(pattern)
    if system.isdir(path):
        fixed, found = path.rstrip("/"), system.find(path, detail=True)
    elif system.exists(path):
        fixed, found = path.rpartition("/")[0], {path: system.info(path)}
    else:
        fixed = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        found = system.glob(path, detail=True)
    for name, info in sorted(found.items()):
        if info["type"] == "file":
            yield system.unstrip_protocol(name).removeprefix("file://"), name.removeprefix(fixed).lstrip("/"), info


def _version(info: dict[str, Any]) -> str:
    named = (info.get(key) for key in ("etag", "ETag", "md5Hash", "mtime", "LastModified", "last_modified", "created"))
    return str(next((value for value in named if value is not None), ""))
