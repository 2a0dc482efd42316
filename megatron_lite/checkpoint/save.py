"""Save a training state: each rank its own blocks in one file, then the index, then the name.

step_N.tmp/rank_00000.safetensors ...   each rank, synced
step_N.tmp/state.safetensors            rank 0, synced: the algorithm's own tensors, where there are any
step_N.tmp/tokenizer.json ...           rank 0, synced: the tokenizer's files, where there is one
step_N.tmp/rank_00000.json ...          each rank, synced: its blocks, the size and checksum of its files
------------------------------------    all ranks have arrived
step_N.tmp/index.json                   rank 0: all parts merged and checked to be whole, synced
step_N.tmp -> step_N                    rank 0; only then older checkpoints go
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lite.checkpoint import directory as names
from megatron_lite.checkpoint import files
from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.blocks import Block
from megatron_lite.checkpoint.index import (
    AVERAGE,
    KINDS,
    MAIN,
    STATE,
    WEIGHTS,
    Base,
    Index,
    Parameter,
    RunState,
    StoredFile,
    StoredModel,
    TokenizerRecord,
    key,
    merge_parameters,
    parameter_from_tree,
    parameter_tree,
)
from megatron_lite.checkpoint.state import State, Trainable, owned_boxes, trained_only, training_state, view
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.files import sync
from megatron_lite.mesh import Mesh


def save(
    directory: Path,
    trainer: Trainable,
    step: int,
    samples: int,
    *,
    others: Mapping[str, Trainable] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    base: Base | None = None,
    tokenizer: Tokenizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `directory`/step_N on all ranks together, then keep the `checkpoint.keep` newest; returns its path.

    `samples` were consumed so far; `extra` (JSON) comes back from `load`. `others` are saved beside the trainer, each
    by its name; `tensors`, the same on every rank, come back from `state_tensors`. With a `base`, the trainer's frozen
    weights are not written: they are the base's. The tokenizer's files go along as they were when it was opened. A
    crash at any point leaves the last complete checkpoint. Raises DataError on every rank when one cannot write.
    """
    mesh, models = trainer.mesh, {MAIN: trainer, **_checked(others or {})}
    target = directory / f"step_{step}"
    partial = target.with_name(f"{target.name}.tmp")
    progress = RunState(step, samples, samples * trainer.config.train.sequence_length, extra or {})
    states = {name: training_state(one) for name, one in models.items()}
    if base is not None:
        states[MAIN] = trained_only(states[MAIN])
    with together(mesh, "checkpoint.prepare"):
        if mesh.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            names.clear_leftovers(directory)
            files.make_directory(partial)
    with together(mesh, "checkpoint.write"):
        _write_rank(partial, states, tensors or {}, {} if tokenizer is None else tokenizer.files.content, mesh)
    with together(mesh, "checkpoint.publish"):
        if mesh.rank == 0:
            _merge(partial, models, base, progress, tokenizer)
            names.publish(partial, target)
            names.set_later_aside(directory, step)
            names.prune(directory, trainer.config.checkpoint.keep)
    return target


def _checked(others: Mapping[str, Trainable]) -> Mapping[str, Trainable]:
    for name in others:
        if name in KINDS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"a model named {name!r}: must be a word of small letters, and none of {', '.join(KINDS)}")
    return others


def _write_rank(
    partial: Path, states: Mapping[str, State], own: Mapping[str, Tensor], beside: Mapping[str, bytes], mesh: Mesh
) -> None:
    """This rank's tensors and the list of them; a rank that owns nothing writes an empty list."""
    name = f"rank_{mesh.rank:05d}.safetensors"
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, dict[str, Any]] = {}
    for model, state in states.items():
        found = _gather_blocks(model, state, mesh, name, tensors)
        parameters[model] = {logical: parameter_tree(parameter) for logical, parameter in found.items()}
    written = {name: tensors}
    if mesh.rank == 0:
        written[STATE] = {one: tensor.detach().cpu().clone().contiguous() for one, tensor in own.items()}
    stored = {file: asdict(_write(partial / file, inside)) for file, inside in written.items() if inside}
    for file, content in beside.items() if mesh.rank == 0 else ():
        files.write_bytes(partial / file, content)
        stored[file] = asdict(_stored(partial / file))
    files.write_json(_part(partial, mesh.rank), {"files": stored, "models": parameters})


def _gather_blocks(model: str, state: State, mesh: Mesh, file: str, tensors: dict[str, Tensor]) -> dict[str, Parameter]:
    """The parameters of which this rank saves blocks; the blocks join `tensors`."""
    parameters: dict[str, Parameter] = {}
    for box, flats in owned_boxes(state, mesh):
        block, logical = Block(file, box.start, box.shape), box.logical
        for kind, flat in flats.items():
            tensors[key(kind, logical.name, block, model)] = view(flat, box)
        dtype = str(flats[WEIGHTS].dtype).removeprefix("torch.")
        before = parameters[logical.name].blocks if logical.name in parameters else ()
        parameters[logical.name] = Parameter(
            logical.shape, dtype, (*before, block), trained=len(flats) > 1, averaged=AVERAGE in flats
        )
    return parameters


def _write(path: Path, tensors: Mapping[str, Tensor]) -> StoredFile:
    files.write_tensors(path, tensors)
    return _stored(path)


def _stored(path: Path) -> StoredFile:
    return StoredFile(path.stat().st_size, files.checksum(path))


def _merge(
    partial: Path, models: Mapping[str, Trainable], base: Base | None, progress: RunState, tokenizer: Tokenizer | None
) -> None:
    """All ranks' parts into index.json. Raises DataError where an element of a model is missing."""
    paths = [_part(partial, rank) for rank in range(models[MAIN].mesh.world.size)]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    merged = {
        name: StoredModel(
            model=one.config.model.model_dump(mode="json"),
            config=one.config.model_dump(mode="json"),
            updates=one.optimizer.updates,
            parameters=merge_parameters(
                {logical: parameter_from_tree(tree) for logical, tree in part["models"][name].items()} for part in parts
            ),
            base=base if name == MAIN else None,
        )
        for name, one in models.items()
    }
    index = Index(
        progress=progress,
        tokenizer=None if tokenizer is None else TokenizerRecord(tokenizer.path, tokenizer.identity),
        files={name: StoredFile(**stored) for part in parts for name, stored in part["files"].items()},
        main=merged.pop(MAIN),
        others=merged,
    )
    index.check_whole()
    for path in paths:
        files.remove_file(path)
    index.save(partial)
    sync(partial)


def _part(partial: Path, rank: int) -> Path:
    return partial / f"rank_{rank:05d}.json"
