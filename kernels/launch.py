"""How kernels are started: fixed launch parameters for each target.

A table instead of autotuning: nothing is timed while a job runs, and no sum's order depends on what was found fastest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# sm_89 stands for cards with 99 KB of shared memory a block: compute capability 8.6, 8.9 and 12.
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Launch:
    """Compile options of a kernel on one target. Without `fusion`, + - * / round on a GPU as in the interpreter."""

    warps: int
    stages: int = 1
    fusion: bool = False

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fusion}


Launches = Mapping[str, Launch]
Entry = TypeVar("Entry")


def by_target(usual: Entry, others: Mapping[str, Entry]) -> dict[str, Entry]:
    """One entry for all targets but those named; where sm_89 is not, it takes sm_80's."""
    return {target: others.get(target, usual) for target in TARGETS} | {
        "sm_89": others.get("sm_89", others.get("sm_80", usual))
    }


def on_every_target(usual: Launch, **others: Launch) -> Launches:
    return by_target(usual, others)


@cache
def target_of(device: torch.device) -> str:
    """The target whose table a device uses: its own, or that of the newest older generation."""
    if device.type != "cuda":
        return "sm_80"  # the interpreter reads no launch parameters
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "gfx942"
    if properties.major == 12 or (properties.major == 8 and properties.minor in (6, 9)):
        return "sm_89"
    return {8: "sm_80", 9: "sm_90"}.get(properties.major, "sm_100")


def for_device(table: Mapping[str, Entry], device: torch.device) -> Entry:
    """A table's entry for the device's target."""
    return table[target_of(device)]


def options_for(launches: Launches, device: torch.device) -> dict:
    return for_device(launches, device).options


def options_for_row(launches: Launches, bytes_of_row: int, device: torch.device) -> dict:
    """The same, but no more warps than there are 128 bits of the row for each thread to move at once."""
    lanes = 64 if target_of(device) == "gfx942" else 32
    options = options_for(launches, device)
    return options | {"num_warps": min(options["num_warps"], max(bytes_of_row // 16 // lanes, 1))}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What a kernel adds in: float32, and float64 for float64 inputs alone."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The same as torch names it."""
    return torch.promote_types(dtype, torch.float32)


def rows_of(x: Tensor) -> Tensor:
    """[.., columns] as [rows, columns], consecutive in memory along a row; copied only where it is not."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def block_of(columns: int) -> int:
    """The power of two that holds a row."""
    return triton.next_power_of_2(columns)
