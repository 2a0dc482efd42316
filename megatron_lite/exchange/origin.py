"""A model wherever its weights come from: a checkpoint of ours, or what a conversion would take."""

from pathlib import Path

import torch
import xxhash

from megatron_lite.checkpoint import Checkpoint, load_weights, open_base, open_checkpoint
from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.directory import named
from megatron_lite.checkpoint.fill import fill_from
from megatron_lite.checkpoint.fit import NAMED, check_model, parameters_of
from megatron_lite.checkpoint.state import weights_only
from megatron_lite.config import ModelConfig
from megatron_lite.errors import DataError
from megatron_lite.exchange.convert import open_source
from megatron_lite.exchange.source import Source
from megatron_lite.mesh import Mesh
from megatron_lite.parallel.pipeline.stage import Stage

Origin = Checkpoint | Source


def open_foreign(path: str | Path) -> Source | None:
    """A Hugging Face directory or a GGUF file; None for what may be a checkpoint or a run of ours. Raises DataError for
    what is none of these.
    """
    return None if named(Path(path)) else open_source(Path(path))


def open_origin(path: str | Path, mesh: Mesh) -> Origin:
    """What a path means. All ranks call it. Raises DataError for what is none, or not whole."""
    return open_foreign(path) or open_checkpoint(path, mesh)


def identity_of(origin: Origin) -> str:
    """A checksum of its weights: of all of them, or of an index that has those of their files."""
    if not isinstance(origin, Source):
        return origin.index.xxh3
    state = xxhash.xxh3_128()
    for name, stored in origin.parameters.items():
        state.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
        state.update(stored.read().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def load_origin(origin: Origin, model: ModelConfig, stage: Stage, mesh: Mesh) -> None:
    """Its weights into a stage, one parameter in memory at a time; what stands on a base after that.

    Raises DataError on every rank for another model.
    """
    if isinstance(origin, Source):
        _load_source(origin, model, stage, mesh)
        return
    missing: tuple[str, ...] = ()
    if origin.index.main.base is not None:
        load_weights(open_base(origin, mesh), model, stage, mesh)
        missing = ("*",)
    load_weights(origin, model, stage, mesh, missing)


def _load_source(source: Source, model: ModelConfig, stage: Stage, mesh: Mesh) -> None:
    state = weights_only(stage)
    check_model(source.path, source.model.model_dump(), model, but=NAMED)
    if lacking := [name for name in parameters_of(model, state, mesh) if name not in source.parameters]:
        raise DataError(f"{source.path} has no parameter {lacking[0]}, which the model needs")
    with together(mesh, "source.read"):
        fill_from({name: stored.read for name, stored in source.parameters.items()}, state)
