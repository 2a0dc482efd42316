"""What ranks do in the checkpoint tests, and how their states are compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.layouts import Blocks, Layout, Tensors, build_trainer, my_batches, reshaped

from megatron_lite.checkpoint import files, find, load, open_checkpoint, save
from megatron_lite.checkpoint.index import KINDS
from megatron_lite.checkpoint.state import all_boxes, owned_boxes, training_state, view
from megatron_lite.config import Config, resolve
from megatron_lite.errors import DataError
from megatron_lite.mesh import Mesh, MeshShape, build_mesh
from megatron_lite.model.initialization import fill_box
from megatron_lite.model.model import Model
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.training.step import Trainer


def owned(trainer: Trainer) -> dict[str, Blocks]:
    """Each kind's blocks, each element on exactly one rank."""
    return _blocks(owned_boxes(training_state(trainer), trainer.mesh))


def held(trainer: Trainer) -> dict[str, Blocks]:
    """Each kind's blocks with all replicas and tied copies."""
    return _blocks(all_boxes(training_state(trainer)))


def _blocks(boxes) -> dict[str, Blocks]:
    found = {kind: [] for kind in KINDS}
    for box, flats in boxes:
        for kind, flat in flats.items():
            found[kind].append((box.logical.name, box.slices, view(flat, box).double().numpy().copy()))
    return found


def outside_sum(trainer: Trainer) -> float:
    """Sum of magnitudes of what lies in no box: padding, which must be zero."""
    total = 0.0
    for shards, flats in training_state(trainer):
        for flat in flats.values():
            rest = flat.clone()
            for _, box in shards.layout.boxes(shards.sharding.rank):
                view(rest, box).zero_()
            total += rest.abs().sum().item()
    return total


def alter_index(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the index's content under a right checksum, as another program would."""
    path = checkpoint / "index.json"
    tree = json.loads(path.read_text())["checkpoint"]
    change(tree)
    path.write_text(json.dumps({"xxh3": files.text_checksum(files.canonical(tree)), "checkpoint": tree}))


def mesh_of(layout: Layout) -> Mesh:
    shape = MeshShape.of(resolve(layout.config(), layout.world))
    return build_mesh(shape, torch.device("cpu"))


def untrained(layout: Layout, mesh: Mesh | None = None, config: Config | None = None, **model: Any) -> Trainer:
    """With its first weights; `model` are fields to change. It has made no step, not even on zeros."""
    config = config or layout.config()
    config = reshaped(config, **model)
    return Trainer(Model(config, resolve(config, layout.world), mesh or mesh_of(layout)))


def stamp(trainer: Trainer, seed: int) -> None:
    """Numbers that depend on the seed, the kind and the place in the logical parameter, on any layout alike."""
    trainer.optimizer.updates = seed
    for shards, flats in training_state(trainer):
        for number, flat in enumerate(flats.values()):
            for _, box in shards.layout.boxes(shards.sharding.rank):
                fill_box(flat, box, 10 * seed + number, flat.dtype)
                view(flat, box).add_(seed + number)
        shards.refresh()


def error_of(action: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """Of a DataError that must come."""
    try:
        action(*arguments, **named)
    except DataError as error:
        return str(error)
    raise AssertionError(f"{action.__name__} succeeded")


def train(trainer: Trainer, steps: range) -> list[float]:
    """Each step's loss."""
    rates = trainer.config.optim
    return [trainer.train_step(my_batches(trainer, step), learning_rate(step, rates)).loss.item() for step in steps]


def spoil(trainer: Trainer) -> None:
    """Numbers that no checkpoint holds, padding included: loading must replace every one."""
    for shards, flats in training_state(trainer):
        for flat in flats.values():
            flat.fill_(777.0)
        shards.refresh()
        shards.wait_gather()


def train_and_save(layout: Layout, directory: Path, steps: range) -> tuple[list[float], dict[str, Blocks]]:
    trainer = build_trainer(layout)
    losses = train(trainer, steps)
    save(directory, trainer, steps[-1], 12 * steps[-1])
    return losses, owned(trainer)


def load_and_save(layout: Layout, source: Path, directory: Path) -> dict[str, Blocks]:
    """Everything held after loading the newest of `source`; saved again into `directory`."""
    trainer = build_trainer(layout)
    spoil(trainer)
    progress = load(open_checkpoint(source, trainer.mesh), trainer)
    assert (progress.step, progress.samples, progress.tokens) == (1, 12, 12 * 16)
    assert trainer.optimizer.updates == 1
    assert outside_sum(trainer) == 0
    for shards in trainer.stage.shards:
        assert torch.equal(shards.compute, shards.master.to(shards.compute.dtype))
        assert not shards.held, "weights gathered before the load are stale"
    save(directory, trainer, progress.step, progress.samples)
    return held(trainer)


def resume_and_train(layout: Layout, directory: Path, steps: range) -> tuple[list[float], dict[str, Blocks]]:
    """Losses after loading the newest of `directory`, whose step comes just before `steps`; saved after the last."""
    trainer = build_trainer(layout)
    assert load(find(directory, "auto", trainer.mesh), trainer).step == steps[0] - 1
    losses = train(trainer, steps)
    save(directory, trainer, steps[-1], 12 * steps[-1])
    return losses, owned(trainer)


def save_while_one_rank_cannot_write(layout: Layout, directory: Path) -> str:
    """Save step 1, then step 2 with a full disk under the last rank; returns the error every rank saw."""
    trainer = build_trainer(layout)
    save(directory, trainer, 1, 12)
    write = files.write_tensors
    if trainer.mesh.rank == layout.world - 1:
        files.write_tensors = _no_space
    try:
        save(directory, trainer, 2, 24)
    except DataError as error:
        found = find(directory, "auto", trainer.mesh)
        assert found.index.progress.step == 1
        return str(error)
    finally:
        files.write_tensors = write
    raise AssertionError("the save succeeded")


def _no_space(path, tensors):
    raise OSError(28, "No space left on device", str(path))


def error_of_loading(layout: Layout, directory: Path) -> str:
    trainer = build_trainer(layout)
    try:
        load(open_checkpoint(directory, trainer.mesh), trainer)
    except DataError as error:
        return str(error)
    raise AssertionError("the load succeeded")


def whole(results: list[dict[str, Blocks]]) -> dict[str, Tensors]:
    """Logical tensors of each kind from every rank's blocks, which may repeat but must agree to the bit."""
    found: dict[str, Tensors] = {}
    for kind in KINDS:
        blocks = [block for rank in results for block in rank[kind]]
        found[kind] = {}
        for name, where, _ in blocks:
            ends = [w.stop for w in where]
            before = found[kind].get(name, np.empty([0] * len(ends)))
            if any(b > a for a, b in zip(before.shape, ends, strict=True)):
                shape = np.maximum(before.shape, ends)
                found[kind][name] = np.full(shape, np.nan)
        for name, where, values in blocks:
            target = found[kind][name][where]
            fresh = np.isnan(target)
            assert (fresh | (target == values)).all(), f"{kind} {name}: replicas differ"
            found[kind][name][where] = values
        assert not any(np.isnan(t).any() for t in found[kind].values()), f"{kind} has a hole"
    return found


def assert_same(ours: dict[str, Tensors], theirs: dict[str, Tensors]) -> None:
    """Equal to the bit."""
    for kind in KINDS:
        assert ours[kind].keys() == theirs[kind].keys()
        for name in ours[kind]:
            np.testing.assert_array_equal(ours[kind][name], theirs[kind][name], err_msg=f"{kind} {name}")
