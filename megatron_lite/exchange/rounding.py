"""A source in another dtype: each number rounded to the nearest one as its tensor is read, some at a time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_lite.errors import DataError
from megatron_lite.exchange.merging import adapted
from megatron_lite.exchange.source import Source, Stored

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SLICE = 1 << 20  # numbers at a time


def in_dtype(source: Source, dtype: str) -> Source:
    """The same model, or adapter on the same base, in a dtype of DTYPES. Reading raises DataError for a number that is
    too large for it.
    """
    own = _in_dtype(source.path, source.own, dtype)
    if source.adapter is None:
        return replace(source, parameters=own, dtype=dtype)
    matrices = {name: own.pop(name) for name in source.adapter.matrices}
    return adapted(source, replace(source.adapter, matrices=matrices, others={**source.adapter.others, **own}))


def _in_dtype(path: Path, tensors: Mapping[str, Stored], dtype: str) -> dict[str, Stored]:
    return {
        name: stored
        if stored.dtype == DTYPES[dtype]
        else Stored(stored.shape, DTYPES[dtype], partial(_rounded, f"{path}: {name}", stored, DTYPES[dtype]))
        for name, stored in tensors.items()
    }


def said_of(tensors: Mapping[str, Stored], dtype: str) -> str:
    """What that does to the numbers, in words."""
    target, parts = DTYPES[dtype], []
    for found, count in Counter(stored.dtype for stored in tensors.values()).items():
        many = "1 tensor" if count == 1 else f"{count} tensors"
        before = str(found).removeprefix("torch.")
        if found == target:
            parts.append(f"{many} of {before} kept")
        elif torch.promote_types(found, target) == target:
            parts.append(f"{many} of {before} in {dtype}, no number changed")
        else:
            parts.append(f"{many} rounded from {before} to {dtype}")
    return "; ".join(parts)


def _rounded(what: str, stored: Stored, dtype: torch.dtype) -> Tensor:
    before, after = stored.read().reshape(-1), torch.empty(stored.shape, dtype=dtype)
    for begin in range(0, len(before), SLICE):
        part, target = before[begin : begin + SLICE], after.view(-1)[begin : begin + SLICE]
        target.copy_(part)
        lost = target.isinf() & part.isfinite()
        if lost.any():
            raise DataError(
                f"{what} holds {part[lost][0].item():g}, and {str(dtype).removeprefix('torch.')} nothing beyond "
                f"{torch.finfo(dtype).max:g}: take another --dtype"
            )
    return after
