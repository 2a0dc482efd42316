"""Other tiles for attention's kernels, while they are timed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron_lite.kernels import attention, attention_backward
from megatron_lite.kernels.attention_tiles import Tiles
from megatron_lite.kernels.launch import Launch, target_of

FORWARD = {"forward": attention.FORWARD}
BACKWARD = {"dq": attention_backward.QUERIES, "dkv": attention_backward.KEYS}


@contextmanager
def with_tiles(kernel: str, head_dim: int, device: torch.device, tiles: tuple[int, int, int, int]) -> Iterator[None]:
    """(rows, step, warps, stages) instead of the launch table's, in this process, for heads of that size."""
    rows, step, warps, stages = tiles
    tables = (FORWARD | BACKWARD)[kernel]
    table, target = tables[min(width for width in tables if width >= head_dim)], target_of(device)
    usual = table[target]
    table[target] = Tiles(rows, step, Launch(warps, stages, fusion=True), stages)
    try:
        yield
    finally:
        table[target] = usual
