"""Tensors whose places do not fit into 32 bits, in memory that nobody has to have."""

import mmap

import torch
from torch import Tensor

FAR = 2**31
MAP_NORESERVE = 0x4000  # of Linux's mman.h; Python has a name for it since 3.13


def room(elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros [elements], more than 2^31 elements behind the start of their memory.

    So a place that wrapped around in 32 bits is one that can be read and written. Untouched memory takes none.
    """
    size = (FAR + 2**27 + elements) * dtype.itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)[FAR + 2**27 :]


def far(x: Tensor, stride: int, dimension: int = 0) -> Tensor:
    """x with another stride along a dimension: one by which its last elements lie more than 2^31 behind the first."""
    strides = list(x.stride())
    strides[dimension] = stride
    reach = sum((length - 1) * step for length, step in zip(x.shape, strides, strict=True)) + 1
    return room(reach, x.dtype).as_strided(x.shape, strides).copy_(x)
