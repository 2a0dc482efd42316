"""Whether a stored model is the one that is here: its configuration, and its parameters by name.

A model may differ from the stored one in the fields that only decide which parameters there are, NAMED; the parameters
are compared one by one, and each difference has to be declared. Every other field must agree: those on which shapes
depend, and those, such as rope_theta, that would make another function of the same weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_lite.checkpoint.index import StoredModel
from megatron_lite.checkpoint.state import State, names_of
from megatron_lite.config import ModelConfig
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


def check_needed(path: Path, stored: StoredModel, needed: Iterable[str], missing: Patterns | None = None) -> None:
    """Raises DataError for parameters that are not stored, but for those that match a pattern of `missing`."""
    lacking = [name for name in needed if name not in stored.parameters and not matches(name, missing or ())]
    if lacking:
        whose = "" if stored.base is None else f" (it stands on {stored.base.path}, which has the rest)"
        raise DataError(
            f"{path} has no parameter {lacking[0]}, which the model needs{_among(lacking)}{whose}"
            f"{_allowing('missing', missing, lacking)}"
        )


def check_used(path: Path, stored: StoredModel, used: Iterable[str], extra: Patterns | None = None) -> None:
    """Raises DataError for stored parameters that the model has no use for, but for those that match `extra`."""
    known = set(used)
    left = [name for name in stored.parameters if name not in known and not matches(name, extra or ())]
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
