"""The moving average of weights in a checkpoint: on any layout to the bit, and what happens where it is on one side."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import (
    assert_same,
    load_and_save,
    owned,
    resume_and_train,
    spoil,
    train,
    train_and_save,
    whole,
)
from support.layouts import Layout, build_trainer

from megatron_lite.checkpoint import load, open_checkpoint, save
from megatron_lite.training.step import Trainer

SMALL = Layout(layers=2, dtype="bfloat16", ema=0.7)
PLAIN = replace(SMALL, ema=None)


def trained(layout: Layout, directory: Path) -> Trainer:
    """After two steps, saved."""
    trainer = build_trainer(layout)
    train(trainer, range(1, 3))
    save(directory, trainer, 2, 24)
    return trainer


def resumed(layout: Layout, directory: Path) -> Trainer:
    """With numbers before that no checkpoint holds."""
    trainer = build_trainer(layout)
    spoil(trainer)
    load(open_checkpoint(directory, trainer.mesh), trainer)
    return trainer


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_it_survives_any_change_of_layout_to_the_bit(ranks, tmp_path, dtype):
    wide = Layout(tensor=2, data=2, layers=5, dtype=dtype, tied=True, ema=0.7)
    results = ranks.run(train_and_save, 4, wide, tmp_path / "wide", range(1, 2))
    truth = whole([blocks for _, blocks in results])
    assert truth["ema"].keys() == truth["master"].keys()
    assert all((truth["ema"][name] != truth["master"][name]).any() for name in truth["ema"])

    long = Layout(pipeline=4, layers=5, stage_layers=(1, 2, 1, 1), dtype=dtype, tied=True, ema=0.7, zero_stage=0)
    assert_same(whole(ranks.run(load_and_save, 4, long, tmp_path / "wide", tmp_path / "long")), truth)
    one = Layout(layers=5, dtype=dtype, tied=True, ema=0.7)
    assert_same(whole([load_and_save(one, tmp_path / "long", tmp_path / "one")]), truth)


def test_a_resumed_run_has_an_unbroken_ones_bits(ranks, tmp_path):
    layout = Layout(data=2, layers=2, dtype="bfloat16", ema=0.7)
    straight = ranks.run(train_and_save, 2, layout, tmp_path / "straight", range(1, 4))
    ranks.run(train_and_save, 2, layout, tmp_path / "stopped", range(1, 3))
    again = ranks.run(resume_and_train, 2, layout, tmp_path / "stopped", range(3, 4))
    assert_same(whole([blocks for _, blocks in again]), whole([blocks for _, blocks in straight]))


def test_where_none_is_stored_it_begins_with_the_weights_and_that_is_said(tmp_path, caplog):
    before = trained(PLAIN, tmp_path)
    found = whole([owned(resumed(SMALL, tmp_path))])
    path = tmp_path / "step_2"
    assert caplog.messages == [f"{path} has no average of the weights: train.ema = 0.7 begins with its weights"]
    theirs = whole([owned(before)])
    for name, values in theirs["master"].items():
        assert np.array_equal(found["ema"][name], values)
        assert np.array_equal(found["master"][name], values)


def test_where_none_is_wanted_it_is_dropped_and_that_is_said(tmp_path, caplog):
    before = trained(SMALL, tmp_path)
    found = whole([owned(resumed(PLAIN, tmp_path))])
    assert caplog.messages == [
        f"the average of the weights in {tmp_path / 'step_2'} is dropped: train.ema is null here"
    ]
    assert not found["ema"]
    assert_same(found, whole([owned(before)]) | {"ema": {}})


def test_what_is_frozen_has_none(tmp_path):
    layout = replace(SMALL, trainable=("*.mlp.*",))
    trained(layout, tmp_path)
    parameters = json.loads((tmp_path / "step_2" / "index.json").read_text())["checkpoint"]["parameters"]
    averaged = {name for name, said in parameters.items() if said.get("averaged")}
    assert averaged == {name for name in parameters if ".mlp." in name} != set()
    assert whole([owned(resumed(layout, tmp_path))])["ema"].keys() == averaged


def test_without_it_a_checkpoint_says_nothing_of_it(tmp_path):
    trained(PLAIN, tmp_path)
    tree = json.loads((tmp_path / "step_2" / "index.json").read_text())["checkpoint"]
    assert not any("averaged" in said for said in tree["parameters"].values())
