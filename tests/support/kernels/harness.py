"""What every operation is tested by: a case gives its kernel, its reference and fresh random inputs.

A kernel and its reference take the same arguments and return a tuple of tensors. Operations that write into an argument
are wrapped so that they return a copy of it, written into.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron_lite.kernels.costs import Cost
from torch import Tensor

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One operation on sizes of several kinds.

    `inputs(size, dtype, generator)` makes arguments of a dtype; what an operation always takes in float32 (float64 for
    float64) it makes so. `cost(size, element, exact)` is the closed form of what the kernel moves. `backward` marks
    gradients, whose rounding may be three times torch's. `by_address`: the kernel finds its tensors by their addresses.
    """

    name: str
    kernel: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    inputs: Callable[[Any, torch.dtype, torch.Generator], Arguments]
    sizes: Sequence[Any]
    cost: Callable[[Any, int, int], Cost]
    backward: bool = False
    by_address: bool = False
    tolerance: float = 2e-6

    def __str__(self) -> str:
        return self.name


def fresh(seed: int = 0) -> torch.Generator:
    """A generator of this run's own numbers; pytest prints the seed where a test fails."""
    return torch.Generator().manual_seed(seed)


def random(shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal numbers, made in float64 and rounded to the dtype."""
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def exact_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def widened(arguments: Arguments) -> Arguments:
    """The same arguments with every float in float64."""
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def copied(arguments: Arguments) -> Arguments:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)


def strided(arguments: Arguments) -> Arguments:
    """The same values, every second row of a larger buffer and columns 8 apart from its edge: not contiguous."""
    return tuple(_strided(a) if isinstance(a, Tensor) and a.dim() >= 2 else a for a in arguments)


def _strided(tensor: Tensor) -> Tensor:
    first, *middle, last = tensor.shape
    room = tensor.new_zeros((2 * first, *middle, last + 16))
    view = room[::2, ..., 8 : 8 + last]
    view.copy_(tensor)
    return view


def surrounded(arguments: Arguments) -> tuple[Arguments, list[tuple[Tensor, Tensor]]]:
    """Contiguous copies amid poison, and (buffer, what has to be left of it) of each."""
    pairs = [_surrounded(a) if isinstance(a, Tensor) else (a, None) for a in arguments]
    return tuple(a for a, _ in pairs), [guard for _, guard in pairs if guard is not None]


def _surrounded(tensor: Tensor):
    poison = float("nan") if tensor.is_floating_point() else (True if tensor.dtype == torch.bool else 2**30)
    edge = 64
    buffer = torch.full((tensor.numel() + 2 * edge,), poison, dtype=tensor.dtype)
    inner = buffer[edge : edge + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner, (buffer, edge)


def untouched(guard: tuple[Tensor, int]) -> bool:
    """Whether the poison at both ends of a buffer is still there."""
    buffer, edge = guard
    ends = torch.cat([buffer[:edge], buffer[-edge:]])
    return bool(ends.isnan().all() if ends.is_floating_point() else (ends == ends[0]).all())


def error(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """(largest, root mean square) difference in float64; equal infinities differ by 0, one NaN by infinity."""
    found, expected = found.double(), expected.double()
    difference = torch.where(found == expected, torch.zeros_like(found), (found - expected).abs())
    difference = torch.where(found.isnan() & expected.isnan(), torch.zeros_like(found), difference)
    difference = difference.nan_to_num(nan=float("inf"))
    if not difference.numel():
        return 0.0, 0.0
    return float(difference.max()), float(difference.square().mean().sqrt())


def size_of(expected: Tensor) -> float:
    """The largest finite magnitude, for relative tolerances; at least the smallest number that divides."""
    finite = expected.double()[expected.isfinite()].abs()
    return max(float(finite.max()) if finite.numel() else 0.0, 1e-30)
