"""Stored blocks into flat shards, a few rows at a time, so that loading takes no memory beside the shards.

Some rows of one block are read at a time, and copied, which converts them. What the process has of a file at once is
one such slice: neither a converted copy nor the file's pages add up.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_lite.checkpoint.blocks import Read, plan_reads
from megatron_lite.checkpoint.index import AVERAGE, INDEX, WEIGHTS, Parameter, key
from megatron_lite.checkpoint.state import Flats, State, all_boxes, padding, view
from megatron_lite.errors import DataError
from megatron_lite.parallel.layout import Box

SLICE = 1 << 22  # stored bytes at a time
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class TensorFile:
    """A safetensors file's table, and its tensors' rows."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self.table = json.loads(file.read(size))
        self.begin = 8 + size

    def dtype(self, name: str) -> torch.dtype:
        if name not in self.table:
            raise DataError(f"{self.path} has no tensor {name}, though {INDEX} lists it: the checkpoint is damaged")
        return DTYPES[self.table[name]["dtype"]]

    def rows(self, name: str, rows: slice) -> Tensor:
        """Mapped, and gone from memory with the tensor."""
        begin, size = self._place(name, rows)
        # Copy on write: torch takes no memory that it could not write to.
        return self._tensor(name, np.memmap(self.path, np.uint8, "c", begin, (size,)))

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read: for a few rows faster than a mapping, which has to be made and taken back page by page."""
        begin, size = self._place(name, rows)
        found = np.empty(size, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(begin)
            if file.readinto(found) != size:  # type: ignore[arg-type]
                raise DataError(f"{self.path} is cut short: {name} ends beyond it")
        return self._tensor(name, found)

    def _place(self, name: str, rows: slice) -> tuple[int, int]:
        """(first byte in the file, bytes) of some rows."""
        begin, end = self.table[name]["data_offsets"]
        width = (end - begin) // self.table[name]["shape"][0]
        return self.begin + begin + rows.start * width, (rows.stop - rows.start) * width

    def _tensor(self, name: str, content: np.ndarray) -> Tensor:
        return torch.from_numpy(content).view(self.dtype(name)).view(-1, *self.table[name]["shape"][1:])


def fill(path: Path, model: str, parameters: Mapping[str, Parameter], state: State) -> None:
    """Every box from its blocks, but those of parameters that are not stored, which keep their values; padding becomes
    zero. Opens each file's table once, reads only what overlaps.
    """
    _clear_padding(state)
    by_file: dict[str, list[tuple[Box, Flats, Read]]] = defaultdict(list)
    for box, flats in all_boxes(state):
        if box.logical.name in parameters:
            for read in _reads(path, parameters[box.logical.name], box, flats):
                by_file[read.block.file].append((box, flats, read))
    for name, jobs in by_file.items():
        file = TensorFile(path / name)
        for box, flats, read in jobs:
            for kind, flat in flats.items():
                # An average that is not stored begins with the weights.
                stored = WEIGHTS if kind == AVERAGE and not parameters[box.logical.name].averaged else kind
                _copy(file, key(stored, box.logical.name, read.block, model), view(flat, box), read)
    _renew(state)


@torch.no_grad()
def fill_from(parameters: Mapping[str, Callable[[], Tensor]], state: State) -> None:
    """Every box from whole tensors, each read once, and one of them in memory at a time; a parameter that is not among
    them keeps its values.
    """
    _clear_padding(state)
    boxes: dict[str, list[tuple[Box, Flats]]] = defaultdict(list)
    for box, flats in all_boxes(state):
        if box.logical.name in parameters:
            boxes[box.logical.name].append((box, flats))
    for name, places in boxes.items():
        whole = parameters[name]()
        for box, flats in places:
            for flat in flats.values():
                view(flat, box).copy_(whole[box.slices])
        del whole  # before the next one is read
    _renew(state)


def _clear_padding(state: State) -> None:
    for shards, flats in state:
        for flat in flats.values():
            for place in padding(shards):
                flat[place].zero_()


def _renew(state: State) -> None:
    for shards, _ in state:
        shards.release()  # gathered weights are stale now
        shards.refresh()


def _reads(path: Path, parameter: Parameter, box: Box, flats: Flats) -> list[Read]:
    name = box.logical.name
    if parameter.shape != box.logical.shape:
        raise DataError(
            f"{path} has {name} with shape {list(parameter.shape)}, the model needs {list(box.logical.shape)}"
        )
    if len(flats) > 1 and not parameter.trained:
        raise DataError(
            f"{path} has {name} without moments, since it was frozen, and here it is trained: freeze it as before "
            f"(train.trainable), or begin from the weights alone (checkpoint.init)"
        )
    return plan_reads(box.start, box.shape, parameter.blocks)


@torch.no_grad()
def _copy(file: TensorFile, name: str, target: Tensor, read: Read) -> None:
    for portion in read.portions(SLICE // file.dtype(name).itemsize):
        rows, *columns = portion.source
        target[portion.target].copy_(file.read_rows(name, rows)[(slice(None), *columns)])
