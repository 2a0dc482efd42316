"""What every kind of source comes down to: a model's shape, and its logical parameters, to be read one at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lite.checkpoint import Checkpoint
from megatron_lite.checkpoint.index import TokenizerRecord
from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.data.tokenizer import FILES, JSON, MODEL, TokenizerFiles
from megatron_lite.errors import DataError
from megatron_lite.model.parameters import Specification

EMBEDDING, HEAD, SCORE = "model.embed_tokens.weight", "lm_head.weight", "score.weight"
# Files of a Hugging Face directory that belong to the model and are carried as they are.
CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of a source. `read` gives it whole; what it takes in memory is free again when it is let go."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Facts:
    """What a source says of its model beside the shape: positions that it was made for, special tokens' ids."""

    context: int
    initializer_range: float = 0.02
    tokens: Mapping[str, Any] = field(default_factory=dict)  # bos_token_id and the like, as config.json has them


@dataclass(frozen=True)
class Adapter:
    """What a source's `parameters` were merged from. `matrices` are A and B by their logical names, `others` the
    model's parameters as they are without them, and `beside` the names of those of them that were trained with the
    matrices; all but these are as `base` has them (None: a checkpoint that holds everything itself).
    """

    lora: LoraConfig
    matrices: Mapping[str, Stored]
    others: Mapping[str, Stored]
    beside: tuple[str, ...]
    base: "Source | Checkpoint | None"


@dataclass(frozen=True)
class Source:
    """`parameters` are exactly the model's, in its order. `dtype` is torch's name of what the model computes in;
    `carried` are files that go along, `left_out` what does not. With an `adapter` it is merged in `parameters`.
    """

    path: Path
    kind: str
    model: ModelConfig
    facts: Facts
    dtype: str
    parameters: Mapping[str, Stored]
    carried: Mapping[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    tokenizer: TokenizerRecord | None = None  # whose ids they are, where a checkpoint of ours says so
    adapter: Adapter | None = None
    merged: Mapping[str, str] = field(default_factory=dict)  # which adapter is in the weights, where files say so
    notes: Mapping[str, Any] = field(default_factory=dict)  # what a checkpoint of ours says beside its weights

    @property
    def own(self) -> Mapping[str, Stored]:
        """What is to be stored of it: of an adapter on a base that alone, and what was trained beside it."""
        adapter = self.adapter
        if adapter is None:
            return self.parameters
        others = adapter.others if adapter.base is None else {name: adapter.others[name] for name in adapter.beside}
        return {**others, **adapter.matrices}

    @property
    def size(self) -> int:
        """Parameters of what is to be stored."""
        return sum(prod(stored.shape) for stored in self.own.values())


def tokenizer_files(path: Path, carried: Mapping[str, bytes]) -> TokenizerFiles | None:
    """The tokenizer's among the files that go along; None where there is none."""
    content = {name: carried[name] for name in FILES if name in carried}
    main = next((name for name in (JSON, MODEL) if name in content), None)
    return None if main is None else TokenizerFiles(str(path), main, content)


def carried_over(own: Mapping[str, bytes], base: Mapping[str, bytes]) -> dict[str, bytes]:
    """An adapter's files and its base's, whose tokenizer is taken where the adapter has none."""
    without = {name: content for name, content in base.items() if name not in FILES}
    return {**(without if {JSON, MODEL} & own.keys() else base), **own}


def shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every logical parameter of a model."""
    parameters = Specification(model, deviation=0.0, tensor=1, rank=0).parameters()
    return {name: logical.shape for name, logical in parameters.items()}


def fitting(path: Path, model: ModelConfig, found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors that were found as the model's parameters, in its order; a tied head that is there too is left out.

    Raises DataError for a tensor that is missing, of another shape, or of no use, and for a tied head that is not the
    embedding.
    """
    shapes = shapes_of(model)
    rest = dict(found)
    if model.tie_word_embeddings and HEAD in rest:
        _check_tied(path, rest.pop(HEAD), rest.get(EMBEDDING))
    _refuse_first(path, [name for name in shapes if name not in rest], "has no tensor", "which the model needs")
    _refuse_first(path, [name for name in rest if name not in shapes], "has the tensor", "of which this model is not")
    for name, shape in shapes.items():
        if rest[name].shape != shape:
            raise DataError(
                f"{path} has {name} with shape {list(rest[name].shape)}, its configuration makes it {list(shape)}"
            )
    return {name: rest[name] for name in shapes}


def without_head(found: Mapping[str, Stored], model: ModelConfig) -> dict[str, Stored]:
    """A policy's tensors for a model that begins from it: one that ends in a scalar has no use for an output."""
    return {name: stored for name, stored in found.items() if name != HEAD or model.head == "logits"}


def common_dtype(dtypes: Iterable[torch.dtype]) -> str:
    """The one that all tensors have, or else one that holds them all exactly."""
    found = set(dtypes)
    if len(found) == 1:
        return str(found.pop()).removeprefix("torch.")
    return "float64" if torch.float64 in found else "float32"


def _refuse_first(path: Path, names: list[str], has: str, why: str) -> None:
    if names:
        more = "" if len(names) == 1 else f", and {len(names) - 1} more"
        raise DataError(f"{path} {has} {names[0]}, {why}{more}")


def _check_tied(path: Path, head: Stored, embedding: Stored | None) -> None:
    """A file may hold the tied weight twice, but then twice the same."""
    if embedding is not None and not _same_bits(head, embedding):
        raise DataError(
            f"{path} ties the output to the embedding, but its {HEAD} is not its {EMBEDDING}: set tie_word_embeddings "
            f"to false, or leave {HEAD} out"
        )


def _same_bits(one: Stored, other: Stored) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.read().view(torch.uint8), other.read().view(torch.uint8))
