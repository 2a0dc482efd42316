"""Checks of arguments whose errors name the operation, the argument and what it must be. Needs no Triton."""

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
WIDEST_HEAD = 256  # elements, of attention


def check(operation: str, name: str, tensor: Tensor, other: Tensor, shape=None, dtype=None) -> None:
    """Raises ValueError unless the tensor is on `other`'s device and has the shape and dtype (or one of them)."""
    if tensor.device != other.device:
        raise ValueError(f"{operation}: {name} is on {tensor.device}, must be on {other.device}, as its other inputs")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{operation}: {name} has shape {list(tensor.shape)}, must be {list(shape)}")
    allowed = dtype if isinstance(dtype, tuple) else (dtype,)
    if dtype is not None and tensor.dtype not in allowed:
        names = " or ".join(map(str, allowed))
        raise ValueError(f"{operation}: {name} is {tensor.dtype}, must be {names}")
