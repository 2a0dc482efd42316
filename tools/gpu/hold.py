"""A kernel that does nothing but hold multiprocessors, as NCCL's do while they wait for a peer."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer, smid

WARPS = 32  # the threads of a whole block: no product's block fits beside them


@triton.jit
def hold_kernel(multiprocessors, nanoseconds):
    """Every program waits so long, and writes down where it was."""
    begin = globaltimer()
    now = begin
    while now - begin < nanoseconds:
        now = globaltimer()
    tl.store(multiprocessors + tl.program_id(0), smid())


def hold(programs: int, milliseconds: float, device: torch.device) -> Tensor:
    """Hold `programs` multiprocessors from the current stream; gives their numbers, int32, once that is over."""
    where = torch.full((programs,), -1, dtype=torch.int32, device=device)
    hold_kernel[(programs,)](where, int(milliseconds * 1e6), num_warps=WARPS)
    return where
