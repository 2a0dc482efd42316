"""index.json: what a checkpoint holds and where. It is written last, so a checkpoint without it never was one.

    {"xxh3": of the rest, "checkpoint": {
        "format": "megatron_lite", "version": 1, "step", "samples", "tokens", "extra",
        "tokenizer": {"path", "sha256", ...} or null,
        "files": {file: {"bytes", "xxh3"}},
        MODEL's keys, of the main model,
        "models": {name: MODEL}}}          those beside it, such as an actor's critic; absent: none

    MODEL:
        "model": the model's fields, "config": the whole configuration, "updates": the optimizer's,
        "base": {"path", "xxh3"} or null,  where parameters lie that are not here, under an adapter; absent: null
        "parameters": {logical name: {"shape", "dtype", "trained", "averaged", "blocks": [[file, start, shape], ...]}}

A block's tensors are under `key(kind, name, block, model)` in its file: its master and moments where the parameter was
trained ("trained" absent: it was), and its moving average where it is "averaged" (absent: it is not); the weights
alone, in the dtype that they were computed with, where it was frozen.
An algorithm's own tensors are in a file of their own, STATE, where there are any. The tokenizer's files and its chat
template have the names that a Hugging Face directory gives them; a checkpoint without them is older, or had none.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from megatron_lite.checkpoint import files
from megatron_lite.checkpoint.blocks import Block, check_tiling
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError

INDEX = "index.json"
FORMAT = {"format": "megatron_lite", "version": 1}
WEIGHTS, AVERAGE = "master", "ema"
KINDS = (WEIGHTS, "exp_avg", "exp_avg_sq", AVERAGE)
STATE = "state.safetensors"
MAIN = ""  # the model that a checkpoint is of, and all that most readers see; those beside it have names


def key(kind: str, name: str, block: Block, model: str = MAIN) -> str:
    """For example `master/model.norm.weight[0:16]`, or `critic/master/model.norm.weight[0:16]`."""
    return f"{model}/{kind}/{name}{block}" if model else f"{kind}/{name}{block}"


@dataclass(frozen=True)
class RunState:
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
    """A logical parameter as stored: `dtype` is torch's name; one that was not `trained` has no moments, and `averaged`
    may be one that was.
    """

    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[Block, ...]
    trained: bool = True
    averaged: bool = False

    @property
    def form(self) -> str:
        """What all ranks must agree on."""
        averaged = ", averaged" if self.averaged else ""
        return f"{self.dtype} {list(self.shape)}, {'trained' if self.trained else 'frozen'}{averaged}"


@dataclass(frozen=True)
class Base:
    """The model that an adapter's checkpoint stands on. `xxh3` is of what it is and of its weights, whatever kind of
    file holds them.
    """

    path: str
    xxh3: str


@dataclass(frozen=True)
class StoredModel:
    """One model of a checkpoint."""

    model: Mapping[str, Any]
    config: Mapping[str, Any]
    updates: int  # the optimizer's
    parameters: Mapping[str, Parameter]
    base: Base | None = None

    def tree(self) -> dict[str, Any]:
        return {
            "model": self.model, "config": self.config, "updates": self.updates,
            "base": None if self.base is None else asdict(self.base),
            "parameters": {name: parameter_tree(parameter) for name, parameter in self.parameters.items()},
        }  # fmt: skip

    @property
    def averaged(self) -> bool:
        """Whether what was trained has a moving average."""
        return any(parameter.averaged for parameter in self.parameters.values())

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        base = tree.get("base")
        return cls(
            model=tree["model"], config=tree["config"], updates=tree["updates"],
            parameters={name: parameter_from_tree(parameter) for name, parameter in tree["parameters"].items()},
            base=None if base is None else Base(**base),
        )  # fmt: skip


@dataclass(frozen=True)
class Index:
    progress: RunState
    tokenizer: TokenizerRecord | None
    files: Mapping[str, StoredFile]
    main: StoredModel
    others: Mapping[str, StoredModel] = field(default_factory=dict)
    xxh3: str = ""  # that index.json states; empty before it is written

    @property
    def model(self) -> Mapping[str, Any]:
        return self.main.model

    @property
    def config(self) -> Mapping[str, Any]:
        return self.main.config

    def check_whole(self) -> None:
        """Raises DataError where a parameter has a hole, or a block lies in a file that is not listed."""
        for model in (self.main, *self.others.values()):
            for name, parameter in model.parameters.items():
                check_tiling(name, parameter.shape, parameter.blocks)
                for block in parameter.blocks:
                    if block.file not in self.files:
                        raise DataError(f"{name}: block {block} is said to be in {block.file}, which is no listed file")

    def save(self, directory: Path) -> None:
        tree = FORMAT | asdict(self.progress) | self.main.tree() | {
            "tokenizer": None if self.tokenizer is None else asdict(self.tokenizer),
            "files": {name: asdict(file) for name, file in self.files.items()},
            "models": {name: model.tree() for name, model in self.others.items()},
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
        return cls._from_tree(tree, said)

    @classmethod
    def _from_tree(cls, tree: Mapping[str, Any], xxh3: str) -> Self:
        tokenizer = tree["tokenizer"]
        if tokenizer is not None:
            tokenizer = TokenizerRecord(tokenizer["path"], TokenizerIdentity(**tokenizer["identity"]))
        return cls(
            progress=RunState(**{f.name: tree[f.name] for f in fields(RunState)}), tokenizer=tokenizer,
            files={name: StoredFile(**file) for name, file in tree["files"].items()},
            main=StoredModel.from_tree(tree),
            others={name: StoredModel.from_tree(model) for name, model in tree.get("models", {}).items()},
            xxh3=xxh3,
        )  # fmt: skip


def parameter_tree(parameter: Parameter) -> dict[str, Any]:
    blocks = [[block.file, block.start, block.shape] for block in parameter.blocks]
    tree = {"shape": parameter.shape, "dtype": parameter.dtype, "trained": parameter.trained, "blocks": blocks}
    return tree | ({"averaged": True} if parameter.averaged else {})


def parameter_from_tree(tree: Mapping[str, Any]) -> Parameter:
    blocks = (Block(file, tuple(start), tuple(shape)) for file, start, shape in tree["blocks"])
    kept = tree.get("trained", True), tree.get("averaged", False)
    return Parameter(tuple(tree["shape"]), tree["dtype"], tuple(blocks), *kept)


def merge_parameters(parts: Iterable[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """The parameters of all ranks' parts. Raises DataError where two parts differ about more than blocks."""
    merged: dict[str, Parameter] = {}
    for part in parts:
        for name, parameter in part.items():
            before = merged.get(name, replace(parameter, blocks=()))
            if before.form != parameter.form:
                raise DataError(f"{name}: one rank holds {parameter.form}, another {before.form}")
            merged[name] = replace(parameter, blocks=before.blocks + parameter.blocks)
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
