"""Random numbers of training: dropout and noise that a token has wherever it lies.

Each is a function of (seed, step, sample, place in the sample), which `Draws.keys` hold, the name of a weight and a
column of its whole input (splitmix.py). So it is the same on every layout, under recomputation and at a resume, and
nothing of it is kept for backward: it is drawn again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from megatron_lite.model.sequences import Draws
from megatron_lite.model.splitmix import key_of, logical_shift, mixed

_CHUNK = 1 << 20  # elements at a time, which bounds the int64 temporaries
_BITS = 53  # of each number that count: as many as a float64 holds


def random_bits(keys: Tensor, name: str, columns: Tensor) -> Tensor:
    """int64 [N, K] below 2^53, of keys int64 [N] and columns int64 [K]."""
    return logical_shift(mixed(columns, mixed(keys, key_of(name)).unsqueeze(-1)), 64 - _BITS)


@dataclass(frozen=True)
class Dropout:
    """x -> x / (1 - p) with probability 1 - p, else 0 (Srivastava et al. 2014, section 4, scaled in training).

    keys   int64 [T, B], of the positions at hand
    first  which column of the whole input is the first at hand
    """

    keys: Tensor
    probability: float
    name: str
    first: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """[T, B, K]; a gradient of its result goes the same way."""
        result, scale = torch.empty_like(x, memory_format=torch.contiguous_format), 1 / (1 - self.probability)
        columns = torch.arange(self.first, self.first + x.shape[-1], device=x.device)
        least = ceil(self.probability * 2**_BITS)
        for rows in _chunks(x):
            kept = random_bits(self.keys.flatten()[rows], self.name, columns) >= least
            result.view(-1, x.shape[-1])[rows] = torch.where(kept, x.flatten(0, -2)[rows] * scale, 0)
        return result


def noisy(x: Tensor, draws: Draws, alpha: float, name: str) -> Tensor:
    """Embeddings x [T, B, H] + u alpha / sqrt(L H), u uniform in [-1, 1) and L the tokens of each one's sample
    (NEFTune, Jain et al. 2023, arXiv 2310.05914, algorithm 1). draws: [T, B] of the same positions.
    """
    return x + _noise(x, draws, alpha, name)


@torch.no_grad()
def _noise(x: Tensor, draws: Draws, alpha: float, name: str) -> Tensor:
    noise, hidden = torch.empty_like(x), x.shape[-1]
    columns = torch.arange(hidden, device=x.device)
    size = alpha / (draws.lengths * hidden).to(torch.float64).sqrt()
    for rows in _chunks(x):
        bits = random_bits(draws.keys.flatten()[rows], name, columns)
        uniform = bits.to(torch.float64) * 2.0 ** (1 - _BITS) - 1
        noise.view(-1, hidden)[rows] = (uniform * size.flatten()[rows].unsqueeze(-1)).to(x.dtype)
    return noise


def _chunks(x: Tensor) -> Iterator[slice]:
    """Of the rows of [.., K]."""
    count, step = x.numel() // x.shape[-1], max(1, _CHUNK // x.shape[-1])
    return (slice(begin, begin + step) for begin in range(0, count, step))
