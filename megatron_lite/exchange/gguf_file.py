"""A GGUF file: its metadata, and its tensors dequantized a few rows at a time.

"GGUF", version, tensors, entries        u32, u64, u64, little endian
entry                                    name, type, value
tensor                                   name, dimensions (columns first), kind, offset from the data's begin
data                                     from the next multiple of general.alignment on
"""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from megatron_lite.errors import DataError
from megatron_lite.exchange.gguf_types import KINDS, OTHERS, Kind
from megatron_lite.exchange.source import Stored

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SLICE = 1 << 20  # numbers dequantized at a time
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class Entry:
    """A tensor's place; `shape` has rows first, as the rest of this program has it."""

    shape: tuple[int, ...]
    kind: Kind
    begin: int

    @property
    def bytes(self) -> int:
        return self.kind.bytes(prod(self.shape))


@dataclass(frozen=True)
class GgufFile:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def open_gguf(path: Path) -> GgufFile:
    """Raises DataError for a file that is not whole, and for a kind of tensor that is not read."""
    with path.open("rb") as file:
        try:
            metadata, entries = _read_head(file, path)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
            raise DataError(f"{path} is damaged or cut short: its table of tensors cannot be read") from None
    size = path.stat().st_size
    for name, entry in entries.items():
        if entry.begin + entry.bytes > size:
            raise DataError(f"{path} is cut short: {name} ends at byte {entry.begin + entry.bytes}, the file at {size}")
    return GgufFile(path, metadata, {name: _stored(path, entry) for name, entry in entries.items()})


def _read_head(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    file.seek(len(MAGIC))
    (version,) = _unpack(file, "I")
    if version not in VERSIONS:
        why = "; it is big-endian" if version % 65536 == 0 else ""
        raise DataError(f"{path} has GGUF version {version}; must be one of {VERSIONS}{why}")
    tensors, entries = _unpack(file, "QQ")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = _text(file)
        metadata[name] = _value(file, *_unpack(file, "I"))
    found: dict[str, tuple[tuple[int, ...], Kind, int]] = {}
    for _ in range(tensors):
        name = _text(file)
        (dimensions,) = _unpack(file, "I")
        shape = tuple(reversed(_unpack(file, f"{min(dimensions, 8)}Q")))
        kind, offset = _unpack(file, "IQ")
        if kind not in KINDS:
            readable = ", ".join(one.name for one in KINDS.values())
            raise DataError(f"{path}: {name} is {OTHERS.get(kind, f'of kind {kind}')}; must be one of {readable}")
        if not shape or not prod(shape) or shape[-1] % KINDS[kind].count:
            raise DataError(f"{path} is damaged: {name} of kind {KINDS[kind].name} has the shape {list(shape)}")
        found[name] = (shape, KINDS[kind], offset)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise DataError(f"{path} is damaged: general.alignment = {alignment}")
    data = -(-file.tell() // alignment) * alignment
    return metadata, {name: Entry(shape, kind, data + offset) for name, (shape, kind, offset) in found.items()}


def _take(file: BinaryIO, size: int) -> bytes:
    """Raises struct.error where the file has fewer, before memory for them is asked for."""
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise struct.error
    return file.read(size)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", _take(file, struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return _take(file, length).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(file)
    if kind == LIST:
        inner, count = _unpack(file, "IQ")
        if inner in SCALARS:
            return list(_unpack(file, f"{count}{SCALARS[inner]}"))
        return [_value(file, inner) for _ in range(count)]
    if kind not in SCALARS:
        raise struct.error
    return _unpack(file, SCALARS[kind])[0]


def _stored(path: Path, entry: Entry) -> Stored:
    return Stored(entry.shape, entry.kind.dtype, lambda: _read(path, entry))


def _read(path: Path, entry: Entry) -> Tensor:
    """A tensor as it stands, mapped; or its numbers, dequantized slice by slice into one new tensor."""
    mapped = np.memmap(path, np.uint8, "c", entry.begin, (entry.bytes,))
    kind = entry.kind
    if kind.numbers is None:
        return torch.from_numpy(mapped).view(kind.dtype).view(entry.shape)
    blocks, target = mapped.reshape(-1, kind.size), np.empty((prod(entry.shape) // kind.count, kind.count), np.float32)
    step = SLICE // kind.count
    for begin in range(0, len(blocks), step):
        target[begin : begin + step] = kind.numbers(np.asarray(blocks[begin : begin + step]))
    return torch.from_numpy(target).view(entry.shape)


def mapped_to(stored: Stored, change: Callable[[Tensor], Tensor]) -> Stored:
    """The same tensor with its rows in another order."""
    return Stored(stored.shape, stored.dtype, lambda: change(stored.read()))
