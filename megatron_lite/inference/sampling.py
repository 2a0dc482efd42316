"""Which token comes next: pure functions of the logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the most likely one; None switches a filter off.

    Raises UsageError for values out of range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k = {self.top_k}: must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p}: must be above 0, and at most 1")


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token for each row of logits [B, V] -> int64 [B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(probabilities(logits, sampling), 1, generator=generator).squeeze(-1)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, [B, V] in float32 (float64 for float64); temperature above 0.

    First the temperature, then the top_k most likely tokens, then of those the fewest that reach top_p together
    (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    scaled = (exact - exact.amax(-1, keepdim=True)) / sampling.temperature
    ranked, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ranked[:, sampling.top_k :] = float("-inf")
    kept = ranked.softmax(-1)
    if sampling.top_p is not None:
        before = kept.cumsum(-1) - kept
        kept = torch.where(before < sampling.top_p, kept, 0.0)
        kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter_(-1, tokens, kept)
