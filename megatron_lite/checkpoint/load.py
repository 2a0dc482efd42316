"""Load a checkpoint on any layout: every box a rank holds is put together from the stored blocks that overlap it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.directory import candidates, log, named
from megatron_lite.checkpoint.fill import fill
from megatron_lite.checkpoint.fit import (
    NAMED,
    check_base,
    check_lora,
    check_model,
    check_needed,
    check_used,
    parameters_of,
)
from megatron_lite.checkpoint.index import MAIN, STATE, Base, Index, RunState, StoredModel, check_files
from megatron_lite.checkpoint.state import Trainable, names_of, trained_only, training_state, weights_only
from megatron_lite.config import ModelConfig
from megatron_lite.data import tokenizer
from megatron_lite.errors import DataError
from megatron_lite.mesh import Mesh
from megatron_lite.model.freezing import Patterns
from megatron_lite.parallel.pipeline.stage import Stage


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: index, sizes and checksums."""

    path: Path
    index: Index

    def __str__(self) -> str:
        return str(self.path)

    @property
    def tokenizer(self) -> Path | None:
        """Where the tokenizer that it carries is opened; None where it carries none."""
        return self.path if {tokenizer.MODEL, tokenizer.JSON} & self.index.files.keys() else None


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


def load(
    checkpoint: Checkpoint,
    trainer: Trainable,
    others: Mapping[str, Trainable] | None = None,
    base: Base | None = None,
) -> RunState:
    """Restore weights, moments, averages and the count of updates into every shard of every rank; those of `others` by
    their names too.

    Stored numbers are converted to what is here; where the dtypes agree, bits stay. An average that is not stored
    begins with the weights, since moments are worth going on with, and one that has no place here is dropped; a warning
    says so. Of a checkpoint that stands on a base the trained part is restored; the rest must be in place, and `base`
    is what it came from. Raises DataError on every rank for another model, another base, a model that is not there, and
    moments that are not: a parameter that was frozen has none.
    """
    models = {MAIN: trainer, **(others or {})}
    stored = {name: _stored(checkpoint, name) for name in models}
    for name, one in models.items():
        _check(checkpoint.path, stored[name], one)
    check_base(checkpoint.path, stored[MAIN].base, base)
    with together(trainer.mesh, "checkpoint.read"):
        for name, one in models.items():
            _restore(checkpoint.path, name, stored[name], one)
    for name, one in models.items():
        one.optimizer.updates = stored[name].updates
        _warn_of_average(checkpoint.path, stored[name], one)
    return checkpoint.index.progress


def load_weights(
    checkpoint: Checkpoint, model: ModelConfig, stage: Stage, mesh: Mesh, missing: Patterns = (), extra: Patterns = ()
) -> None:
    """Restore the weights alone, for a stage without an optimizer or a run that begins with them.

    A parameter that is not stored keeps its values if it matches a pattern of `missing`; one that is stored and of no
    use must match one of `extra`. All ranks look at all of the model's. Raises DataError on every rank for any other
    difference, and for another model: of its fields only `head` and `tie_word_embeddings` may differ, which decide
    nothing but which parameters there are.
    """
    path, stored, state = checkpoint.path, checkpoint.index.main, weights_only(stage)
    check_model(path, stored.model, model, but=NAMED)
    names = parameters_of(model, state, mesh)
    check_needed(path, stored.parameters, names, missing, stored.base)
    check_used(path, stored.parameters, names, extra)
    with together(mesh, "checkpoint.read"):
        fill(path, MAIN, stored.parameters, state)


def state_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The algorithm's own tensors that were saved with the models, on the CPU; none where there were none."""
    return load_file(checkpoint.path / STATE) if STATE in checkpoint.index.files else {}


def _stored(checkpoint: Checkpoint, name: str) -> StoredModel:
    if name == MAIN:
        return checkpoint.index.main
    if name not in checkpoint.index.others:
        there = ", ".join(checkpoint.index.others) or "none"
        raise DataError(f"{checkpoint.path} has no model {name}; beside its own it has {there}")
    return checkpoint.index.others[name]


def _check(path: Path, stored: StoredModel, trainer: Trainable) -> None:
    """What all ranks see alike: whether it is the model, and whether it is whole."""
    model = trainer.config.model
    check_model(path, stored.model, model)
    check_lora(path, stored.config, trainer.config.lora)
    names = parameters_of(model, training_state(trainer), trainer.mesh)
    check_used(path, stored.parameters, names)
    if stored.base is None:
        check_needed(path, stored.parameters, names)


def _warn_of_average(path: Path, stored: StoredModel, trainer: Trainable) -> None:
    """Where one side has an average of the weights and the other has none."""
    decay = trainer.config.train.ema
    if trainer.mesh.rank == 0 and stored.averaged and decay is None:
        log.warning("the average of the weights in %s is dropped: train.ema is null here", path)
    elif trainer.mesh.rank == 0 and not stored.averaged and decay is not None:
        log.warning("%s has no average of the weights: train.ema = %s begins with its weights", path, decay)


def _restore(path: Path, name: str, stored: StoredModel, trainer: Trainable) -> None:
    """One model's whole state, or its trained part where the rest is a base's."""
    state = training_state(trainer)
    if stored.base is not None:
        check_needed(path, stored.parameters, names_of(trained_only(state)), base=stored.base)
    fill(path, name, stored.parameters, state)


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
