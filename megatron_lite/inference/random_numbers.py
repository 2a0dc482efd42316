"""Random numbers of a draw as a function of who draws: the same on every layout, in any batch, in any order.

Those of a key are counted by token id, so that one token's does not depend on which others may be drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_lite.model.splitmix import logical_shift, mixed


def exponentials(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Exponentially distributed numbers float64 [N, count] above 0, mean 1: for each key those of 0 to count - 1."""
    bits = mixed(torch.arange(count, device=device), torch.tensor(keys, dtype=torch.int64, device=device)[:, None])
    # 52 bits and a half are exact in float64, and neither 0 nor 1.
    return logical_shift(bits, 12).to(torch.float64).add_(0.5).mul_(2.0**-52).log_().neg_()
