"""The weighted mean of several models' weights, one parameter at a time (Wortsman et al. 2022, arXiv 2203.05482; of the
last checkpoints of one run, Izmailov et al. 2018, arXiv 1803.05407).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_lite.checkpoint.directory import candidates
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.source import Source, Stored


def mean_of(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """The first source with the mean of all in place of its weights; `weights` need not add up to 1.

    Sums are float32 (float64 where a source is), the result has the first one's dtypes. Raises DataError for models
    that differ, and for ids of other tokenizers.
    """
    first, *others = sources
    for other in others:
        _check_same(first, other)
    total = sum(weights)
    shares = [weight / total for weight in weights]
    parameters = {
        name: Stored(stored.shape, stored.dtype, _Mean([source.parameters[name] for source in sources], shares))
        for name, stored in first.parameters.items()
    }
    return replace(first, parameters=parameters, adapter=None)


class _Mean:
    """Reads every source's tensor, one after the other."""

    def __init__(self, parts: Sequence[Stored], shares: Sequence[float]):
        self.parts, self.shares = parts, shares

    def __call__(self) -> Tensor:
        exact = torch.float64 if any(part.dtype == torch.float64 for part in self.parts) else torch.float32
        total = torch.zeros(self.parts[0].shape, dtype=exact)
        for part, share in zip(self.parts, self.shares, strict=True):
            total.add_(part.read(), alpha=share)
        return total.to(self.parts[0].dtype)


def last_of(run: Path, count: int) -> list[Path]:
    """The newest `count` checkpoints of a run or checkpoints directory, the newest first. Raises UsageError."""
    found = candidates(run / "checkpoints") or candidates(run)
    if count < 1 or len(found) < count:
        raise UsageError(f"--last {count}: must be 1 to {len(found)}, as many checkpoints as {run} holds")
    return [candidate.path for candidate in found[:count]]


def _check_same(first: Source, other: Source) -> None:
    ours, theirs = first.model.model_dump(), other.model.model_dump()
    wrong = [f"model.{name} = {theirs[name]} ({ours[name]})" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise DataError(
            f"{other.path} is another model than {first.path}: it has {', '.join(wrong)}; they must be equal"
        )
    if first.tokenizer and other.tokenizer and first.tokenizer.identity != other.tokenizer.identity:
        raise DataError(f"{other.path} was trained with another tokenizer than {first.path}: their ids differ")
