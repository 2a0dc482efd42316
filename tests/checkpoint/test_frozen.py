"""What is frozen is stored by its weights alone, and comes back to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.checkpoints import alter_index, assert_same, error_of, held, owned, spoil, train, whole
from support.layouts import Blocks, Layout, build_trainer

from megatron_lite.checkpoint import find, load, open_checkpoint, save
from megatron_lite.training.step import Trainer

TRAINED = ["*.mlp.*", "model.norm.weight"]
SMALL = Layout(layers=2, dtype="bfloat16")


def trainer_of(layout: Layout, trainable: list[str] | None = TRAINED) -> Trainer:
    return build_trainer(layout, config=layout.config(trainable=trainable))


@pytest.fixture
def saved(tmp_path) -> tuple[Trainer, Path]:
    """A trainer after a step, and the checkpoint that it saved then."""
    trainer = trainer_of(SMALL)
    train(trainer, range(1, 2))
    return trainer, save(tmp_path, trainer, 1, 12)


def test_frozen_weights_are_stored_alone_in_the_dtype_that_computes(saved):
    _, path = saved
    tree = json.loads((path / "index.json").read_text())["checkpoint"]
    said = {name: (entry["trained"], entry["dtype"]) for name, entry in tree["parameters"].items()}
    assert said["model.layers.0.mlp.up_proj.weight"] == said["model.norm.weight"] == (True, "float32")
    assert said["model.layers.1.self_attn.q_proj.weight"] == said["lm_head.weight"] == (False, "bfloat16")
    with safe_open(path / "rank_00000.safetensors", "pt") as file:
        kinds = [key.split("/")[0] for key in file.keys() if "lm_head" in key]  # noqa: SIM118 (not a dict)
        assert kinds == ["master"]
        assert file.get_tensor("master/lm_head.weight[0:61,0:32]").dtype == torch.bfloat16


def go_on(layout: Layout, directory: Path, steps: range) -> tuple[list[float], dict[str, Blocks], dict[str, Blocks]]:
    """Losses after loading the newest; what was held then, and what is owned at the end."""
    trainer = trainer_of(layout)
    spoil(trainer)
    load(find(directory, "auto", trainer.mesh), trainer)
    before = held(trainer)
    return train(trainer, steps), before, owned(trainer)


def begin(layout: Layout, directory: Path) -> tuple[list[float], dict[str, Blocks], dict[str, Blocks]]:
    """Saved after step 2; the losses of steps 3 and 4, what was owned after step 2, and at the end."""
    trainer = trainer_of(layout)
    train(trainer, range(1, 3))
    save(directory, trainer, 2, 24)
    before = owned(trainer)
    return train(trainer, range(3, 5)), before, owned(trainer)


def test_a_resume_on_the_same_patterns_gives_the_same_bits_and_on_another_layout_begins_with_them(ranks, tmp_path):
    wide = Layout(tensor=2, pipeline=2, layers=2, dtype="bfloat16", tied=True)
    straight = ranks.run(begin, 4, wide, tmp_path)
    resumed = ranks.run(go_on, 4, wide, tmp_path, range(3, 5))
    assert [losses for losses, _, _ in resumed] == [losses for losses, _, _ in straight]
    assert_same(whole([end for _, _, end in resumed]), whole([end for _, _, end in straight]))

    moved = ranks.run(go_on, 2, Layout(data=2, layers=2, dtype="bfloat16", tied=True), tmp_path, range(3, 4))
    assert_same(whole([before for _, before, _ in moved]), whole([before for _, before, _ in straight]))


def test_what_was_frozen_is_not_trained_on_without_moments(saved):
    _, path = saved
    trainer = trainer_of(SMALL, [*TRAINED, "*.self_attn.k_proj.*", "*.self_attn.[qv]_proj.*"])
    error = error_of(load, open_checkpoint(path, trainer.mesh), trainer)
    assert "step_1 has model.layers.0.self_attn." in error and "without moments, since it was frozen" in error


def test_what_was_trained_may_be_frozen(saved):
    before, path = saved
    trainer = trainer_of(SMALL, ["*.layers.0.mlp.*"])
    spoil(trainer)
    load(open_checkpoint(path, trainer.mesh), trainer)
    ours, theirs = whole([owned(trainer)]), whole([owned(before)])
    for name, values in ours["master"].items():
        expected = torch.from_numpy(theirs["master"][name])
        here = expected if ".layers.0.mlp." in name else expected.to(torch.bfloat16).double()
        assert torch.equal(torch.from_numpy(values), here), name
    for name, values in ours["exp_avg"].items():
        assert (values == theirs["exp_avg"][name]).all()


def before_weights_could_be_frozen(tree):
    del tree["models"], tree["base"]
    for parameter in tree["parameters"].values():
        del parameter["trained"]


def test_a_checkpoint_from_before_weights_could_be_frozen_loads(tmp_path):
    trainer = build_trainer(SMALL)
    train(trainer, range(1, 2))
    path, truth = save(tmp_path, trainer, 1, 12), whole([owned(trainer)])
    alter_index(path, before_weights_could_be_frozen)
    spoil(trainer)
    assert load(open_checkpoint(path, trainer.mesh), trainer).step == 1
    assert_same(whole([owned(trainer)]), truth)
