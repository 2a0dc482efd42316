"""safetensors files, read with every length checked and written tensor by tensor.

A file's table comes before its tensors, so shapes and dtypes have to be known first; then the tensors follow one at a
time, and no more than one of them is in memory.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_lite.checkpoint.fill import DTYPES, TensorFile
from megatron_lite.checkpoint.index import StoredFile
from megatron_lite.errors import DataError
from megatron_lite.exchange.source import Stored
from megatron_lite.files import sync

NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_TABLE = 100_000_000  # bytes, as the safetensors library has it


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, mapped when they are read. Raises DataError for a file that is not whole."""
    _check(path, path.stat().st_size)
    file = TensorFile(path)
    return {
        name: _stored(file, name, tuple(entry["shape"])) for name, entry in file.table.items() if name != "__metadata__"
    }


def open_metadata(path: Path) -> dict[str, str]:
    """What a file says beside its tensors."""
    return TensorFile(path).table.get("__metadata__", {})


def _stored(file: TensorFile, name: str, shape: tuple[int, ...]) -> Stored:
    if file.table[name]["dtype"] not in DTYPES:
        raise DataError(
            f"{file.path}: {name} has the dtype {file.table[name]['dtype']}; must be one of {', '.join(DTYPES)}"
        )
    return Stored(shape, file.dtype(name), lambda: file.rows(name, slice(0, shape[0])))


def _check(path: Path, size: int) -> None:
    """The table must be one, and its tensors must fill the file without a gap."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_TABLE):
            raise DataError(f"{path} is no whole safetensors file: {size} bytes do not hold its table")
        try:
            table = json.loads(file.read(length))
            tensors = {name: entry for name, entry in table.items() if name != "__metadata__"}
            places = sorted(entry["data_offsets"] for entry in tensors.values())
            shapes = {name: list(map(int, entry["shape"])) for name, entry in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} is no safetensors file: its table cannot be read") from None
    end = 0
    for begin, stop in places:
        if begin != end or stop < begin:
            raise DataError(f"{path} is damaged: its tensors leave a gap or overlap at byte {begin}")
        end = stop
    if size != 8 + length + end:
        raise DataError(f"{path} is cut short or too long: it has {size} bytes, its table says {8 + length + end}")
    for name, entry in tensors.items():
        begin, stop = entry["data_offsets"]
        known = DTYPES.get(entry["dtype"])
        if known is not None and prod(shapes[name]) * known.itemsize != stop - begin:
            raise DataError(f"{path} is damaged: {name} of shape {shapes[name]} has {stop - begin} bytes")
        if not prod(shapes[name]) or not shapes[name]:
            raise DataError(f"{path}: {name} has the shape {shapes[name]}, which holds no rows")


def write_tensors(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> StoredFile:
    """A safetensors file, on the disk when this returns; its size and checksum, computed on the way."""
    # Wide elements first, so that each tensor begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        stored = tensors[name]
        place = [end, end := end + stored.bytes]
        table[name] = {"dtype": NAMES[stored.dtype], "shape": list(stored.shape), "data_offsets": place}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    state = xxhash.xxh3_128()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            state.update(piece)
        for name in order:
            tensor = tensors[name].read()
            data = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            file.write(data)
            state.update(data)
            del tensor, data  # before the next one is read
    sync(path)
    return StoredFile(path.stat().st_size, state.hexdigest())


def in_files(parameters: Mapping[str, Stored], most: int) -> list[dict[str, Stored]]:
    """The parameters in order, as many to a file as its `most` bytes hold, and at least one."""
    files: list[dict[str, Stored]] = []
    size = most
    for name, stored in parameters.items():
        if not files or size + stored.bytes > most:
            files.append({})
            size = 0
        files[-1][name] = stored
        size += stored.bytes
    return files
