"""An adapter's checkpoint: what was trained, and the name of what it stands on."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import alter_index, assert_same, error_of, held, owned, spoil, stamp, train, untrained, whole
from support.layouts import Blocks, Layout, build_trainer

from megatron_lite.checkpoint import (
    Base,
    base_of,
    identity,
    load,
    load_weights,
    open_base,
    open_checkpoint,
    save,
)
from megatron_lite.config import LoraConfig
from megatron_lite.training.step import Trainer

LAYOUT = Layout(layers=2, dtype="bfloat16")
TRAINED = ["*.self_attn.o_proj.*", "*norm*"]


def adapter_of(layout: Layout) -> Trainer:
    return untrained(layout, config=layout.config(trainable=TRAINED))


def save_base(layout: Layout, directory: Path) -> None:
    trainer = untrained(layout)
    stamp(trainer, 3)
    save(directory, trainer, 1, 12)


def begin(layout: Layout, base: Path) -> tuple[Trainer, Base]:
    """An adapter's trainer with the base's weights."""
    trainer = adapter_of(layout)
    found = open_checkpoint(base, trainer.mesh)
    load_weights(found, trainer.config.model, trainer.stage, trainer.mesh)
    return trainer, identity(found)


def train_adapter(layout: Layout, base: Path, directory: Path) -> dict[str, Blocks]:
    trainer, stands_on = begin(layout, base)
    train(trainer, range(1, 2))
    save(directory, trainer, 1, 12, base=stands_on)
    return owned(trainer)


def load_adapter(layout: Layout, directory: Path) -> dict[str, Blocks]:
    """All that is held after loading the base and then the adapter."""
    trainer = adapter_of(layout)
    spoil(trainer)
    checkpoint = open_checkpoint(directory, trainer.mesh)
    load_weights(open_base(checkpoint, trainer.mesh), trainer.config.model, trainer.stage, trainer.mesh)
    load(checkpoint, trainer)
    assert trainer.optimizer.updates == 1
    return held(trainer)


@pytest.fixture
def saved(tmp_path) -> Path:
    """The adapter's checkpoint; its base is tmp_path/base/step_1."""
    save_base(LAYOUT, tmp_path / "base")
    train_adapter(LAYOUT, tmp_path / "base", tmp_path / "adapter")
    return tmp_path / "adapter" / "step_1"


def test_only_what_was_trained_is_stored_and_the_index_names_the_base(saved, tmp_path):
    trainer = adapter_of(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    names = set(checkpoint.index.main.parameters)
    assert names == {name for shards in trainer.stage.trained for name in names_in(shards)}
    assert "model.layers.0.self_attn.o_proj.weight" in names and "lm_head.weight" not in names
    checkpoint.index.check_whole()
    base = open_checkpoint(tmp_path / "base", trainer.mesh)
    assert base_of(checkpoint) == identity(base) == Base(str(tmp_path / "base" / "step_1"), base.index.xxh3)
    assert base_of(base) is None
    size, whole_size = ((path / "rank_00000.safetensors").stat().st_size for path in (saved, base.path))
    assert size < whole_size / 3


def names_in(shards) -> set[str]:
    return {packed.logical.name for local in shards.layout.locals for packed in local.packs}


def test_an_adapter_goes_on_from_its_base_and_its_own_on_another_layout(ranks, tmp_path):
    wide = replace(LAYOUT, tensor=2, pipeline=2)
    ranks.run(save_base, 4, wide, tmp_path / "base")
    truth = whole(ranks.run(train_adapter, 4, wide, tmp_path / "base", tmp_path / "adapter"))
    assert_same(whole(ranks.run(load_adapter, 2, replace(LAYOUT, data=2), tmp_path / "adapter")), truth)


def beside(layout: Layout) -> Trainer:
    """With an adapter's own weights beside each block."""
    return untrained(replace(layout, lora=LoraConfig(rank=3, targets=("q_proj", "o_proj", "gate_proj"))))


def save_beside(layout: Layout, base: Path, directory: Path) -> dict[str, Blocks]:
    trainer = beside(layout)
    stamp(trainer, 2)
    found = open_checkpoint(base, trainer.mesh)
    load_weights(found, trainer.config.model, trainer.stage, trainer.mesh, missing=("*.lora_[AB].weight",))
    save(directory, trainer, 1, 12, base=identity(found))
    return owned(trainer)


def load_beside(layout: Layout, directory: Path) -> dict[str, Blocks]:
    trainer = beside(layout)
    spoil(trainer)
    checkpoint = open_checkpoint(directory, trainer.mesh)
    base = open_base(checkpoint, trainer.mesh)
    load_weights(base, trainer.config.model, trainer.stage, trainer.mesh, missing=("*.lora_[AB].weight",))
    load(checkpoint, trainer)
    return held(trainer)


def error_without_adapter(layout: Layout, directory: Path) -> str:
    trainer = adapter_of(layout)
    return error_of(load, open_checkpoint(directory, trainer.mesh), trainer)


def test_weights_beside_the_models_own_are_stored_and_found_on_every_stage(ranks, tmp_path):
    wide = replace(LAYOUT, tensor=2, pipeline=2)
    ranks.run(save_base, 4, wide, tmp_path / "base")
    truth = whole(ranks.run(save_beside, 4, wide, tmp_path / "base", tmp_path / "adapter"))
    assert len(truth["exp_avg"]) == 6 * 2 and all(".lora_" in name for name in truth["exp_avg"])
    assert len(truth["master"]) > len(truth["exp_avg"])
    deep = Layout(pipeline=2, layers=2, dtype="bfloat16")
    assert_same(whole(ranks.run(load_beside, 2, deep, tmp_path / "adapter")), truth)
    errors = ranks.run(error_without_adapter, 2, deep, tmp_path / "adapter")
    assert errors[0] == errors[1]
    assert ".lora_" in errors[0] and errors[0].endswith("which the model does not use, and 11 more")


def test_loading_leaves_the_frozen_part_as_it_is(saved):
    trainer = adapter_of(LAYOUT)
    before = whole([owned(trainer)])["master"]
    load(open_checkpoint(saved, trainer.mesh), trainer)
    after = whole([owned(trainer)])["master"]
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed == {name for shards in trainer.stage.trained for name in names_in(shards)}


def test_another_base_under_the_same_name_is_refused_by_both_checksums(saved, tmp_path):
    trainer = adapter_of(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    before = base_of(checkpoint)
    alter_index(tmp_path / "base" / "step_1", lambda tree: tree.update(extra={"note": "another"}))
    after = identity(open_checkpoint(tmp_path / "base", trainer.mesh))
    for error in (error_of(load, checkpoint, trainer), error_of(open_base, checkpoint, trainer.mesh)):
        assert f"{saved} stands on {before.path} with the checksum {before.xxh3}; " in error
        assert f"what is there now has {after.xxh3}" in error


def test_a_base_that_is_gone_is_named(saved, tmp_path):
    trainer = adapter_of(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert f"{saved} stands on {tmp_path / 'base' / 'step_1'} (checksum " in error_of(load, checkpoint, trainer)


def test_a_whole_models_run_does_not_take_an_adapter_for_its_weights(saved, tmp_path):
    trainer = build_trainer(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    whose = f"(it stands on {tmp_path / 'base' / 'step_1'}, which has the rest)"
    assert whose in error_of(load, checkpoint, trainer)
    assert whose in error_of(load_weights, checkpoint, trainer.config.model, trainer.stage, trainer.mesh)
    assert "stands on no other checkpoint" in error_of(
        open_base, open_checkpoint(tmp_path / "base", trainer.mesh), trainer.mesh
    )
