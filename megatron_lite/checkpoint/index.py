"""index.json: what a checkpoint holds and where. It is written last, so a checkpoint without it never was one.

    {"xxh3": of the rest, "checkpoint": {
        "format": "megatron_lite", "version": 1, "step", "samples", "tokens", "updates", "extra",
        "model": the model's fields, "config": the whole configuration, "tokenizer": {"path", "sha256", ...} or null,
        "files": {file: {"bytes", "xxh3"}},
        "parameters": {logical name: {"shape", "dtype", "blocks": [[file, start, shape], ...]}}}}

A block's tensors are under `key(kind, name, block)` in its file, one for each of KINDS.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from megatron_lite.checkpoint import files
from megatron_lite.checkpoint.blocks import Block, check_tiling
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError

INDEX = "index.json"
FORMAT = {"format": "megatron_lite", "version": 1}
KINDS = ("master", "exp_avg", "exp_avg_sq")


def key(kind: str, name: str, block: Block) -> str:
    """For example `master/model.norm.weight[0:16]`."""
    return f"{kind}/{name}{block}"


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `samples` and `tokens` are those consumed so far; `extra` is the caller's, JSON only."""

    step: int
    samples: int
    tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerRecord:
    """Which tokenizer the model's ids belong to; `path` as the configuration had it."""

    path: str
    identity: TokenizerIdentity


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Parameter:
    """A logical parameter as stored: `dtype` is torch's name."""

    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Index:
    progress: Progress
    updates: int  # the optimizer's
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: TokenizerRecord | None
    files: Mapping[str, StoredFile]
    parameters: Mapping[str, Parameter]

    def check_whole(self) -> None:
        """Raises DataError where a parameter has a hole, or a block lies in a file that is not listed."""
        for name, parameter in self.parameters.items():
            check_tiling(name, parameter.shape, parameter.blocks)
            for block in parameter.blocks:
                if block.file not in self.files:
                    raise DataError(f"{name}: block {block} is said to be in {block.file}, which is no listed file")

    def save(self, directory: Path) -> None:
        tree = FORMAT | asdict(self.progress) | {
            "updates": self.updates, "model": self.model, "config": self.config,
            "tokenizer": None if self.tokenizer is None else asdict(self.tokenizer),
            "files": {name: asdict(file) for name, file in self.files.items()},
            "parameters": {name: parameter_tree(parameter) for name, parameter in self.parameters.items()},
        }  # fmt: skip
        files.write_json(directory / INDEX, {"xxh3": files.text_checksum(files.canonical(tree)), "checkpoint": tree})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises DataError for an index that is missing, torn, altered, or of another format."""
        path = directory / INDEX
        try:
            outer = json.loads(path.read_text(encoding="utf-8"))
            tree, said = outer["checkpoint"], outer["xxh3"]
        except FileNotFoundError:
            raise DataError(f"{directory} is no complete checkpoint: it has no {INDEX}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error!r}") from None
        if files.text_checksum(files.canonical(tree)) != said:
            raise DataError(f"{path} is damaged: its content does not have the checksum {said} that it states")
        found = {name: tree.get(name) for name in FORMAT}
        if found != FORMAT:
            raise DataError(f"{path} has {found}; this program reads {FORMAT}")
        return cls._from_tree(tree)

    @classmethod
    def _from_tree(cls, tree: Mapping[str, Any]) -> Self:
        tokenizer = tree["tokenizer"]
        if tokenizer is not None:
            tokenizer = TokenizerRecord(tokenizer["path"], TokenizerIdentity(**tokenizer["identity"]))
        return cls(
            progress=Progress(**{f.name: tree[f.name] for f in fields(Progress)}),
            updates=tree["updates"], model=tree["model"], config=tree["config"], tokenizer=tokenizer,
            files={name: StoredFile(**file) for name, file in tree["files"].items()},
            parameters={name: parameter_from_tree(parameter) for name, parameter in tree["parameters"].items()},
        )  # fmt: skip


def parameter_tree(parameter: Parameter) -> dict[str, Any]:
    blocks = [[block.file, block.start, block.shape] for block in parameter.blocks]
    return {"shape": parameter.shape, "dtype": parameter.dtype, "blocks": blocks}


def parameter_from_tree(tree: Mapping[str, Any]) -> Parameter:
    blocks = (Block(file, tuple(start), tuple(shape)) for file, start, shape in tree["blocks"])
    return Parameter(tuple(tree["shape"]), tree["dtype"], tuple(blocks))


def merge_parameters(parts: Iterable[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """The parameters of all ranks' parts. Raises DataError where two parts differ about a shape or dtype."""
    merged: dict[str, Parameter] = {}
    for part in parts:
        for name, parameter in part.items():
            before = merged.get(name, Parameter(parameter.shape, parameter.dtype, ()))
            if (before.shape, before.dtype) != (parameter.shape, parameter.dtype):
                raise DataError(
                    f"{name}: one rank holds {parameter.dtype} {parameter.shape}, another {before.dtype} {before.shape}"
                )
            merged[name] = Parameter(before.shape, before.dtype, before.blocks + parameter.blocks)
    return merged


def check_files(directory: Path, listed: Mapping[str, StoredFile]) -> None:
    """Raises DataError for a file that is missing or differs from what the index says of it."""
    for name, stored in listed.items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing, though {INDEX} lists it: the checkpoint is damaged")
        if (size := path.stat().st_size) != stored.bytes:
            raise DataError(f"{path} has {size} bytes, {INDEX} says {stored.bytes}: the checkpoint is damaged")
        if (found := files.checksum(path)) != stored.xxh3:
            raise DataError(f"{path} has the checksum {found}, {INDEX} says {stored.xxh3}: the checkpoint is damaged")
