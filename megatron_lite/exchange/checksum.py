"""A checksum of weights: the same whatever kind of file holds them, in whatever order, and however many ranks read."""

import json
from collections.abc import Iterable, Mapping

import torch
import xxhash

from megatron_lite.config import ModelConfig
from megatron_lite.exchange.source import Source, Stored

Digests = Mapping[str, str]  # of each parameter by its name


def digests_of(tensors: Mapping[str, Stored], names: Iterable[str]) -> dict[str, str]:
    """Of these tensors' bytes, dtypes and shapes, one in memory at a time."""
    return {name: _digest(tensors[name]) for name in names}


def checksum(digests: Digests) -> str:
    """Of all tensors together."""
    return _hash("\n".join(f"{name} {digests[name]}" for name in sorted(digests)))


def checksum_of(source: Source) -> str:
    """Of a source's weights."""
    return checksum(digests_of(source.parameters, source.parameters))


def model_checksum(model: ModelConfig, digests: Digests) -> str:
    """Of the weights and of what model they are, since the same weights are another function with another rope_theta.

    A field that has its default does not count: fields that are new one day change no checksum.
    """
    fields = json.dumps(model.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return _hash(f"{fields}\n{checksum(digests)}")


def _digest(stored: Stored) -> str:
    tensor = stored.read().contiguous()
    state = xxhash.xxh3_128(f"{stored.dtype} {list(stored.shape)}\n".encode())
    state.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _hash(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()
