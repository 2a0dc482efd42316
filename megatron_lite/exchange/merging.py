"""An adapter and what it stands on as one model: W + alpha / r * B A in W's place (Hu et al. 2021, arXiv 2106.09685,
equation 3), one parameter at a time.

Whole matrices are multiplied whoever asks, so that every layout gets the same bits.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.errors import DataError
from megatron_lite.exchange.checksum import checksum, digests_of
from megatron_lite.exchange.source import Adapter, Source, Stored
from megatron_lite.model.parameters import Specification, is_adapter


def adapted(plain: Source, adapter: Adapter) -> Source:
    """The source with an adapter merged into its weights, which keep their dtypes."""
    return replace(plain, parameters=_merged(adapter), adapter=adapter)


def merged_alone(source: Source) -> Source:
    """An adapted source as a plain one, which says what is merged in it."""
    adapter = source.adapter
    assert adapter is not None
    base = source.path if adapter.base is None else adapter.base.path
    note = {"adapter": str(source.path), "base": str(base), "xxh3": _checksum(adapter.matrices)}
    return replace(source, adapter=None, merged=note)


def said_of_merging(source: Source) -> str:
    """What merging does, in words."""
    adapter = source.adapter
    assert adapter is not None
    base = "its own weights" if adapter.base is None else adapter.base.path
    lora = adapter.lora
    return (
        f"merged: W + {lora.alpha:g} / {lora.rank} B A in {len(adapter.matrices) // 2} matrices "
        f"({', '.join(lora.targets)}) of {base}; the result is a model without adapter"
    )


def check_unmerged(path: Path, matrices: Mapping[str, Stored], base: Source) -> None:
    """Raises DataError where a base says that this very adapter is in its weights."""
    if base.merged.get("xxh3") == _checksum(matrices):
        raise DataError(f"{path} is merged in {base.path} already: it must be added once, to {base.merged['base']}")


def in_exact(source: Source) -> Source:
    """An adapted source in the dtype that merging is computed in, for rounding to another one to be the only one."""
    assert source.adapter is not None
    others = {name: _raised(stored) for name, stored in source.adapter.others.items()}
    return replace(source, parameters=_merged(replace(source.adapter, others=others)))


def check_matrices(path: Path, model: ModelConfig, lora: LoraConfig, matrices: Mapping[str, Stored]) -> None:
    """Raises DataError unless every block has A and B of each target, and nothing has more."""
    every = Specification(model, deviation=0.0, tensor=1, rank=0, lora=lora).parameters()
    shapes = {name: logical.shape for name, logical in every.items() if is_adapter(name)}
    for name in shapes.keys() - matrices.keys():
        raise DataError(f"{path} has no {name}: adapters here are the same in every block")
    for name, stored in matrices.items():
        if name not in shapes:
            raise DataError(f"{path} has {name}, of which this model is not")
        if stored.shape != shapes[name]:
            raise DataError(
                f"{path} has {name} with shape {list(stored.shape)}, rank {lora.rank} on this model makes it "
                f"{list(shapes[name])}"
            )


def _checksum(matrices: Mapping[str, Stored]) -> str:
    return checksum(digests_of(matrices, matrices))


def _merged(adapter: Adapter) -> dict[str, Stored]:
    found = {}
    for name, weight in adapter.others.items():
        stem = name.removesuffix("weight")
        a, b = (adapter.matrices.get(f"{stem}lora_{letter}.weight") for letter in "AB")
        found[name] = weight
        if a is not None and b is not None:
            found[name] = Stored(weight.shape, weight.dtype, partial(_read, weight, a, b, adapter.lora.scale))
    return found


def _read(weight: Stored, a: Stored, b: Stored, scale: float) -> Tensor:
    return merge(weight.read(), a.read(), b.read(), scale)


@torch.no_grad()
def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight [out, in] + scale * b [out, r] a [r, in], in the weight's dtype, computed in float32 (float64 where one of
    them is).
    """
    exact = torch.float64 if torch.float64 in (weight.dtype, a.dtype, b.dtype) else torch.float32
    return torch.addmm(weight.to(exact), b.to(exact), a.to(exact), alpha=scale).to(weight.dtype)


def _raised(stored: Stored) -> Stored:
    dtype = torch.promote_types(stored.dtype, torch.float32)
    return Stored(stored.shape, dtype, lambda: stored.read().to(dtype))
