"""Load a checkpoint on any layout: every box a rank holds is put together from the stored blocks that overlap it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.blocks import Read, plan_reads
from megatron_lite.checkpoint.directory import candidates, log, named
from megatron_lite.checkpoint.index import Index, Progress, check_files, key
from megatron_lite.checkpoint.state import Flats, Trainable, all_boxes, training_state, view, weights_only
from megatron_lite.config import ModelConfig
from megatron_lite.errors import DataError
from megatron_lite.mesh import Mesh
from megatron_lite.parallel.layout import Box
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.zero import Shards


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: index, sizes and checksums."""

    path: Path
    index: Index

    def __str__(self) -> str:
        return str(self.path)


def find(directory: Path, choice: str, mesh: Mesh) -> Checkpoint | None:
    """What `checkpoint.resume` chooses, verified: `none`, `auto` (the newest whole one of `directory`), or a path.

    With `auto` a damaged one is passed over with a warning, and None means that there is none at all. Raises DataError,
    on every rank, when all are damaged, or when a given path holds none.
    """
    if choice == "none":
        return None
    if choice == "auto":
        return _newest([candidate.path for candidate in candidates(directory)], mesh)
    return open_checkpoint(choice, mesh)


def open_checkpoint(path: str | Path, mesh: Mesh) -> Checkpoint:
    """Find and verify what `path` means: a step_N, or the newest whole one of a checkpoints or run directory."""
    checkpoint = _newest(named(Path(path)), mesh)
    if checkpoint is None:
        raise DataError(f"{path} holds no checkpoint: it must be a step_N directory or a run directory with one")
    return checkpoint


def config_to_resume(directory: Path, choice: str) -> tuple[Path, Mapping[str, Any]] | None:
    """The checkpoint that `find` will choose, by what one process sees of it alone, and its run's configuration.

    It looks at indices, not at the files that they list. None where there is none.
    """
    if choice == "none":
        return None
    paths = [candidate.path for candidate in candidates(directory)] if choice == "auto" else named(Path(choice))
    for path in paths:
        try:
            return path, Index.load(path).config
        except (OSError, DataError):
            continue  # `find` says so
    return None


def load(checkpoint: Checkpoint, trainer: Trainable) -> Progress:
    """Restore weights, moments and the count of updates into every shard of every rank.

    Stored numbers are converted to the trainer's master dtype; where that is the stored one, bits stay. Raises
    DataError on every rank for another model.
    """
    _check_model(checkpoint, trainer.config.model)
    with together(trainer.mesh, "checkpoint.read"):
        _fill(checkpoint, training_state(trainer))
    trainer.optimizer.updates = checkpoint.index.updates
    return checkpoint.index.progress


def load_weights(checkpoint: Checkpoint, model: ModelConfig, stage: Stage, mesh: Mesh) -> None:
    """Restore the weights alone, for a stage without an optimizer."""
    _check_model(checkpoint, model)
    with together(mesh, "checkpoint.read"):
        _fill(checkpoint, weights_only(stage))


def _newest(paths: list[Path], mesh: Mesh) -> Checkpoint | None:
    """The first whole one of `paths`. All ranks follow rank 0's list, so that they cannot disagree."""
    paths = [Path(line) for line in mesh.words.exchange("\n".join(map(str, paths)), "checkpoint.find")[0].splitlines()]
    problems = []
    for path in paths:
        try:
            return _verified(path, mesh)
        except DataError as error:
            problems.append(str(error))
            if mesh.rank == 0 and len(paths) > 1:
                log.warning("checkpoint %s is passed over: %s", path.name, error)
    if not problems:
        return None
    more = "" if len(problems) == 1 else f"; none of the {len(problems)} checkpoints in {paths[0].parent} is whole"
    raise DataError(f"{problems[0]}{more}")


def _verified(path: Path, mesh: Mesh) -> Checkpoint:
    """Check a checkpoint's files, each on one rank."""
    with together(mesh, "checkpoint.verify"):
        index = Index.load(path)
        mine = sorted(index.files)[mesh.rank :: mesh.world.size]
        check_files(path, {name: index.files[name] for name in mine})
        if mesh.rank == 0:
            index.check_whole()
    return Checkpoint(path, index)


def _check_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    try:
        stored = ModelConfig.model_validate(dict(checkpoint.index.model))
    except ValidationError:
        raise DataError(
            f"{checkpoint.path} has a model that this program cannot build: {dict(checkpoint.index.model)}"
        ) from None
    ours, theirs = model.model_dump(), stored.model_dump()
    wrong = [f"model.{name} = {theirs[name]} (here {ours[name]})" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise DataError(f"{checkpoint.path} is of another model: it has {', '.join(wrong)}; they must be equal")


def _fill(checkpoint: Checkpoint, state: Sequence[tuple[Shards, Flats]]) -> None:
    """Every box from its blocks; padding becomes zero. Opens each file once, reads only what overlaps."""
    for _, flats in state:
        for flat in flats.values():
            flat.zero_()
    by_file: dict[str, list[tuple[Box, Flats, Read]]] = defaultdict(list)
    for box, flats in all_boxes(state):
        for read in _reads(checkpoint, box):
            by_file[read.block.file].append((box, flats, read))
    for name, jobs in by_file.items():
        with safe_open(checkpoint.path / name, framework="pt") as file:
            for box, flats, read in jobs:
                _copy(file, box, flats, read)
    for shards, _ in state:
        shards.release()  # gathered weights are stale now
        shards.refresh()


def _reads(checkpoint: Checkpoint, box: Box) -> Iterable[Read]:
    parameter = checkpoint.index.parameters.get(box.logical.name)
    if parameter is None:
        raise DataError(f"{checkpoint.path} has no parameter {box.logical.name}, which the model needs")
    if parameter.shape != box.logical.shape:
        raise DataError(
            f"{checkpoint.path} has {box.logical.name} with shape {list(parameter.shape)}, "
            f"the model needs {list(box.logical.shape)}"
        )
    return plan_reads(box.start, box.shape, parameter.blocks)


@torch.no_grad()
def _copy(file: Any, box: Box, flats: Flats, read: Read) -> None:
    for kind, flat in flats.items():
        stored: Tensor = file.get_slice(key(kind, box.logical.name, read.block))[read.source]
        view(flat, box)[read.target].copy_(stored)
