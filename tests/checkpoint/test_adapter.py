"""An adapter's checkpoint: what was trained, and the name and checksum of what it stands on."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import assert_same, error_of, held, owned, spoil, stamp, train, untrained, whole
from support.layouts import Blocks, Layout, build_trainer

from megatron_lite.checkpoint import Base, load, load_weights, open_checkpoint, save
from megatron_lite.config import LoraConfig
from megatron_lite.model.freezing import ADAPTERS
from megatron_lite.training.step import Trainer

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "o_proj", "gate_proj"))
LAYOUT = Layout(layers=2, dtype="bfloat16", lora=LORA)
ON = Base("the/base", "0123")


def save_base(layout: Layout, directory: Path) -> None:
    trainer = untrained(replace(layout, lora=None))
    stamp(trainer, 3)
    save(directory, trainer, 1, 12)


def load_base(trainer: Trainer, directory: Path) -> None:
    base = open_checkpoint(directory, trainer.mesh)
    load_weights(base, trainer.config.model, trainer.stage, trainer.mesh, missing=ADAPTERS)


def train_adapter(layout: Layout, base: Path, directory: Path) -> dict[str, Blocks]:
    trainer = untrained(layout)
    load_base(trainer, base)
    train(trainer, range(1, 3))
    save(directory, trainer, 1, 12, base=ON)
    return owned(trainer)


def load_adapter(layout: Layout, base: Path, directory: Path) -> dict[str, Blocks]:
    """All that is held after loading the base and then the adapter."""
    trainer = untrained(layout)
    spoil(trainer)
    load_base(trainer, base)
    load(open_checkpoint(directory, trainer.mesh), trainer, base=ON)
    assert trainer.optimizer.updates == 2
    return held(trainer)


def error_of_another_model(layout: Layout, directory: Path) -> str:
    trainer = untrained(layout)
    return error_of(load, open_checkpoint(directory, trainer.mesh), trainer, base=ON)


@pytest.fixture
def saved(tmp_path) -> Path:
    """The adapter's checkpoint, stamped."""
    trainer = untrained(LAYOUT)
    stamp(trainer, 2)
    save(tmp_path / "adapter", trainer, 1, 12, base=ON)
    return tmp_path / "adapter" / "step_1"


def test_only_adapters_and_their_moments_are_stored_and_the_index_names_the_base(saved):
    trainer = untrained(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    main = checkpoint.index.main
    assert main.base == ON and main.config["lora"]["alpha"] == 6.0
    assert len(main.parameters) == 2 * 3 * 2 and all(".lora_" in name for name in main.parameters)
    assert all(parameter.trained for parameter in main.parameters.values())
    checkpoint.index.check_whole()


def test_an_adapter_goes_on_from_its_base_and_its_own_on_another_layout(ranks, tmp_path):
    """Both stages of the second layout have adapters, of which only one is the rank's that tells their names."""
    wide = replace(LAYOUT, tensor=2, pipeline=2)
    ranks.run(save_base, 4, wide, tmp_path / "base")
    truth = whole(ranks.run(train_adapter, 4, wide, tmp_path / "base", tmp_path / "adapter"))
    assert len(truth["exp_avg"]) == 2 * 3 * 2 < len(truth["master"])
    other = replace(LAYOUT, pipeline=2)
    assert_same(whole(ranks.run(load_adapter, 2, other, tmp_path / "base", tmp_path / "adapter")), truth)
    errors = ranks.run(error_of_another_model, 2, replace(other, lora=None), tmp_path / "adapter")
    assert errors[0] == errors[1]
    assert "is of a run with adapters, and lora is null here" in errors[0]


def test_loading_leaves_the_frozen_part_as_it_is(saved):
    trainer = untrained(LAYOUT)
    before = whole([owned(trainer)])["master"]
    load(open_checkpoint(saved, trainer.mesh), trainer, base=ON)
    after = whole([owned(trainer)])["master"]
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed == {name for name in after if ".lora_" in name}


def test_another_base_is_refused_by_both_checksums(saved):
    trainer = untrained(LAYOUT)
    checkpoint = open_checkpoint(saved, trainer.mesh)
    moved = replace(ON, path="moved/there")
    assert load(checkpoint, trainer, base=moved).step == 1
    said = error_of(load, checkpoint, trainer, base=Base("another", "4567"))
    assert f"{saved} stands on the/base with the checksum 0123; another has 4567" in said
    assert "whose weights must be in place first" in error_of(load, checkpoint, trainer)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"alpha": 3.0}, "has lora.alpha = 6.0 (here 3.0); they must be equal"),
        ({"rank": 2}, "has lora.rank = 3 (here 2); they must be equal"),
        ({"targets": ("q_proj",)}, "has lora.targets = "),
    ],
)
def test_an_adapter_of_another_form_or_scale_is_refused(saved, change, complaint):
    other = replace(LAYOUT, lora=LORA.model_copy(update=change))
    assert complaint in error_of_another_model(other, saved)


def test_dropout_and_the_order_of_targets_may_change(saved):
    changed = LORA.model_copy(update={"dropout": 0.5, "targets": LORA.targets[::-1]})
    trainer = untrained(replace(LAYOUT, lora=changed))
    assert load(open_checkpoint(saved, trainer.mesh), trainer, base=ON).step == 1


def test_a_whole_models_run_does_not_take_an_adapter_for_its_weights(saved):
    trainer = build_trainer(Layout(layers=2, dtype="bfloat16"))
    checkpoint = open_checkpoint(saved, trainer.mesh)
    assert "is of a run with adapters" in error_of(load, checkpoint, trainer, base=ON)
    said = error_of(load_weights, checkpoint, trainer.config.model, trainer.stage, trainer.mesh)
    assert "(it stands on the/base, which has the rest)" in said
