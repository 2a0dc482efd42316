"""The mean of several models: what it is of each number, and what is refused."""

import sys
from pathlib import Path

import merge_checkpoints
import numpy as np
import pytest
import torch
from exchange.models import model_of, weights_of, write_hf
from support.checkpoints import untrained
from support.layouts import Layout

from megatron_lite.checkpoint import save
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import open_source
from megatron_lite.exchange.average import last_of, mean_of

MODEL = model_of()
SEEDS = (1, 2, 3)


def several(folder: Path) -> list[Path]:
    found = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(w.shape, generator=generator) for name, w in weights_of(MODEL).items()}
        found.append(write_hf(folder / f"model{seed}", MODEL, noise))
    return found


def merge(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["merge_checkpoints.py", *map(str, arguments)])
    merge_checkpoints.main()


@pytest.mark.parametrize(("given", "weights"), [(None, (1, 1, 1)), ("3,1,0.5", (3, 1, 0.5))])
def test_each_number_is_the_weighted_mean_of_all_models(tmp_path, monkeypatch, given, weights):
    paths = several(tmp_path)
    more = [] if given is None else ["--weights", given]
    merge(monkeypatch, *paths, "--target", tmp_path / "mean", *more)
    parts, found = [open_source(path) for path in paths], open_source(tmp_path / "mean")
    for name, stored in found.parameters.items():
        exact = sum(w * p.parameters[name].read().double().numpy() for w, p in zip(weights, parts, strict=True))
        np.testing.assert_allclose(stored.read().double().numpy(), exact / sum(weights), rtol=0, atol=1e-6)


def test_the_mean_of_one_model_is_that_model_to_the_bit(tmp_path, monkeypatch):
    path = several(tmp_path)[0]
    merge(monkeypatch, path, "--target", tmp_path / "mean", "--to", "hf")
    ours, theirs = open_source(tmp_path / "mean"), open_source(path)
    for name, stored in theirs.parameters.items():
        assert torch.equal(ours.parameters[name].read(), stored.read())


def test_of_a_run_the_newest_checkpoints_are_taken(tmp_path, monkeypatch):
    trainer = untrained(Layout(layers=2, dtype="float32"))
    for step in range(1, 4):
        for shards in trainer.stage.shards:
            shards.values.fill_(float(step))
        save(tmp_path / "run" / "checkpoints", trainer, step, step)
    assert [path.name for path in last_of(tmp_path / "run", 2)] == ["step_3", "step_2"]
    merge(monkeypatch, tmp_path / "run", "--last", "2", "--target", tmp_path / "mean")
    for stored in open_source(tmp_path / "mean").parameters.values():
        assert (stored.read() == 2.5).all()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--weights", "1,2"], r"--weights 1,2: must be 3 numbers above 0"),
        (["--weights", "1,0,2"], r"--weights 1,0,2: must be 3 numbers above 0"),
        (["--last", "2"], r"--last 2: goes with one run, not with 3 sources"),
    ],
)
def test_wrong_numbers_are_refused_by_name_and_leave_nothing(tmp_path, monkeypatch, arguments, line):
    paths = several(tmp_path)
    with pytest.raises(UsageError, match=line):
        merge(monkeypatch, *paths, "--target", tmp_path / "mean", *arguments)
    assert not list(tmp_path.glob("*mean*"))


def test_models_of_other_shapes_are_refused_by_the_fields_that_differ(tmp_path):
    paths = several(tmp_path)
    other = model_of(rope_theta=5e5)
    paths.append(write_hf(tmp_path / "other", other, weights_of(other)))
    with pytest.raises(DataError, match=r"other is another model than .*model1: it has model.rope_theta = 500000.0"):
        mean_of([open_source(path) for path in paths], [1.0] * 4)


def test_more_checkpoints_than_there_are_cannot_be_averaged(tmp_path):
    with pytest.raises(UsageError, match=r"--last 2: must be 1 to 0, as many checkpoints as .* holds"):
        last_of(tmp_path, 2)
