"""Save a training state: each rank its own blocks in one file, then the index, then the name.

step_N.tmp/rank_00000.safetensors ...   each rank, synced
step_N.tmp/rank_00000.json ...          each rank, synced: its blocks, the size and checksum of its file
------------------------------------    all ranks have arrived
step_N.tmp/index.json                   rank 0: all parts merged and checked to be whole, synced
step_N.tmp -> step_N                    rank 0; only then older checkpoints go
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_lite.checkpoint import directory as names
from megatron_lite.checkpoint import files
from megatron_lite.checkpoint.agreement import together
from megatron_lite.checkpoint.blocks import Block
from megatron_lite.checkpoint.index import (
    Index,
    Parameter,
    Progress,
    StoredFile,
    TokenizerRecord,
    key,
    merge_parameters,
    parameter_from_tree,
    parameter_tree,
)
from megatron_lite.checkpoint.state import Trainable, owned_boxes, training_state, view
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.files import sync


def save(
    directory: Path,
    trainer: Trainable,
    step: int,
    samples: int,
    *,
    tokenizer: Tokenizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `directory`/step_N on all ranks together, then keep the `checkpoint.keep` newest; returns its path.

    `samples` were consumed so far; `extra` (JSON) comes back from `load`. A crash at any point leaves the last complete
    checkpoint. Raises DataError on every rank when one cannot write.
    """
    mesh = trainer.mesh
    target = directory / f"step_{step}"
    partial = target.with_name(f"{target.name}.tmp")
    progress = Progress(step, samples, samples * trainer.config.train.sequence_length, extra or {})
    with together(mesh, "checkpoint.prepare"):
        if mesh.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            names.clear_leftovers(directory)
            files.make_directory(partial)
    with together(mesh, "checkpoint.write"):
        _write_rank(partial, trainer)
    with together(mesh, "checkpoint.publish"):
        if mesh.rank == 0:
            _merge(partial, trainer, progress, tokenizer)
            names.publish(partial, target)
            names.set_later_aside(directory, step)
            names.prune(directory, trainer.config.checkpoint.keep)
    return target


def _write_rank(partial: Path, trainer: Trainable) -> None:
    """This rank's tensors and the list of them; a rank that owns nothing writes an empty list."""
    name = f"rank_{trainer.mesh.rank:05d}.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    parameters: dict[str, Parameter] = {}
    for box, flats in owned_boxes(training_state(trainer), trainer.mesh):
        block, logical = Block(name, box.start, box.shape), box.logical
        for kind, flat in flats.items():
            tensors[key(kind, logical.name, block)] = view(flat, box)
        dtype = str(flats["master"].dtype).removeprefix("torch.")
        before = parameters.get(logical.name, Parameter(logical.shape, dtype, ()))
        parameters[logical.name] = Parameter(logical.shape, dtype, (*before.blocks, block))
    stored = {}
    if tensors:
        path = partial / name
        files.write_tensors(path, tensors)
        stored = {name: asdict(StoredFile(path.stat().st_size, files.checksum(path)))}
    part = {"files": stored, "parameters": {n: parameter_tree(p) for n, p in parameters.items()}}
    files.write_json(_part(partial, trainer.mesh.rank), part)


def _merge(partial: Path, trainer: Trainable, progress: Progress, tokenizer: Tokenizer | None) -> None:
    """All ranks' parts into index.json. Raises DataError where an element of the model is missing."""
    paths = [_part(partial, rank) for rank in range(trainer.mesh.world.size)]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    index = Index(
        progress=progress,
        updates=trainer.optimizer.updates,
        model=trainer.config.model.model_dump(mode="json"),
        config=trainer.config.model_dump(mode="json"),
        tokenizer=None if tokenizer is None else TokenizerRecord(tokenizer.path, tokenizer.identity),
        files={name: StoredFile(**stored) for part in parts for name, stored in part["files"].items()},
        parameters=merge_parameters(
            {name: parameter_from_tree(tree) for name, tree in part["parameters"].items()} for part in parts
        ),
    )
    index.check_whole()
    for path in paths:
        files.remove_file(path)
    index.save(partial)
    sync(partial)


def _part(partial: Path, rank: int) -> Path:
    return partial / f"rank_{rank:05d}.json"
