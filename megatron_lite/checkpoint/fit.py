"""Whether a stored model is the one that is here: its configuration, and its parameters by name.

A model may differ from the stored one in the fields that only decide which parameters there are, NAMED; the parameters
are compared one by one, and each difference has to be declared. Every other field must agree: those on which shapes
depend, and those, such as rope_theta, that would make another function of the same weights.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_lite.checkpoint.index import Base
from megatron_lite.checkpoint.state import State, names_of
from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.config.complaints import show
from megatron_lite.errors import DataError
from megatron_lite.mesh import Mesh
from megatron_lite.model.freezing import Patterns, matches
from megatron_lite.model.parameters import Specification

NAMED = ("head", "tie_word_embeddings")


def check_model(path: Path, stored: Mapping[str, Any], model: ModelConfig, but: Sequence[str] = ()) -> None:
    """Raises DataError where a field of the stored model differs, `but` for some."""
    try:
        theirs = ModelConfig.model_validate(dict(stored)).model_dump()
    except ValidationError:
        raise DataError(f"{path} has a model that this program cannot build: {dict(stored)}") from None
    ours = model.model_dump(exclude=set(but))
    wrong = [f"model.{name} = {theirs[name]} (here {ours[name]})" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise DataError(f"{path} is of another model: it has {', '.join(wrong)}; they must be equal")


def check_lora(path: Path, config: Mapping[str, Any], lora: LoraConfig | None) -> None:
    """Raises DataError where a stored configuration's adapters are others than these: alpha makes another function of
    the same weights. Dropout may differ, as any key of training.
    """
    given = config.get("lora")
    theirs = None if given is None else LoraConfig.model_validate(given)
    if (theirs is None) != (lora is None):
        has, here = ("adapters", "lora is null") if lora is None else ("no adapters", "lora is not null")
        raise DataError(f"{path} is of a run with {has}, and {here} here: lora must be as it was")
    if theirs is not None and lora is not None:
        check_adapters(path, theirs, lora)


def check_adapters(path: Path, theirs: LoraConfig, ours: LoraConfig) -> None:
    """Raises DataError for adapters of another form or another scale."""
    for name in ("rank", "alpha", "targets"):
        before, now = getattr(theirs, name), getattr(ours, name)
        if (sorted(before) != sorted(now)) if name == "targets" else before != now:
            raise DataError(f"{path} has lora.{name} = {show(before)} (here {show(now)}); they must be equal")


def check_base(path: Path, recorded: Base | None, found: Base | None) -> None:
    """Raises DataError where what was found is not what a checkpoint stands on."""
    if recorded is None or (found is not None and found.xxh3 == recorded.xxh3):
        return
    on = f"{path} stands on {recorded.path} with the checksum {recorded.xxh3}"
    if found is None:
        raise DataError(f"{on}, whose weights must be in place first")
    raise DataError(f"{on}; {found.path} has {found.xxh3}: it must be the very model that was trained on")


def parameters_of(model: ModelConfig, state: State, mesh: Mesh) -> list[str]:
    """Every parameter's name, whichever stage it lies on: the specification's, and what stages have beside it, as an
    adapter's are. Of the latter the first rank of each stage tells the others.
    """
    known = dict.fromkeys(Specification(model, deviation=0.0, tensor=1, rank=0).parameters())
    beside = [name for name in names_of(state) if name not in known]
    first = all(mesh.coordinate[axis] == 0 for axis in ("data", "context", "tensor"))
    for text in mesh.words.exchange("\n".join(beside) if first else "", "checkpoint.names"):
        known |= dict.fromkeys(text.splitlines())
    return list(known)


def check_needed(
    path: Path, stored: Container[str], needed: Iterable[str], missing: Patterns | None = None, base: Base | None = None
) -> None:
    """Raises DataError for parameters whose names are not `stored`, but for those that match a pattern of `missing`;
    `base` is what has the rest.
    """
    lacking = [name for name in needed if name not in stored and not matches(name, missing or ())]
    if lacking:
        whose = "" if base is None else f" (it stands on {base.path}, which has the rest)"
        raise DataError(
            f"{path} has no parameter {lacking[0]}, which the model needs{_among(lacking)}{whose}"
            f"{_allowing('missing', missing, lacking)}"
        )


def check_used(path: Path, stored: Iterable[str], used: Iterable[str], extra: Patterns | None = None) -> None:
    """Raises DataError for stored parameters that the model has no use for, but for those that match `extra`."""
    known = set(used)
    left = [name for name in stored if name not in known and not matches(name, extra or ())]
    if left:
        raise DataError(
            f"{path} has the parameter {left[0]}, which the model does not use{_among(left)}"
            f"{_allowing('extra', extra, left)}"
        )


def _allowing(word: str, patterns: Patterns | None, names: Iterable[str]) -> str:
    """Which patterns would match the names, one for all layers; nothing where there can be none."""
    if patterns is None:
        return ""
    would = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    return f"; {word} = {list(patterns)} does not allow that, {word} = {[*patterns, *would]} would"


def _among(names: Sequence[str]) -> str:
    return "" if len(names) == 1 else f", and {len(names) - 1} more"
