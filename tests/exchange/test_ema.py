"""A run's moving average of its weights on its way out of a checkpoint."""

import sys
from pathlib import Path

import convert_checkpoint
import merge_checkpoints
import numpy as np
import pytest
import torch
from exchange.models import IDS, model_of, weights_of, write_gguf, write_hf
from safetensors.torch import load_file
from support.checkpoints import owned, train, whole
from support.layouts import Layout, Tensors, build_trainer

from megatron_lite.checkpoint import save
from megatron_lite.errors import UsageError
from megatron_lite.exchange import convert, open_source

LAYOUT = Layout(layers=2, dtype="float32", ema=0.6, trainable=("*.mlp.*", "*.self_attn.*"))
IDS = IDS[:16]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[dict[str, Tensors]]]:
    """A run, and its state after steps 1 and 2."""
    directory, trainer, states = tmp_path_factory.mktemp("run"), build_trainer(LAYOUT), []
    for step in (1, 2):
        train(trainer, range(step, step + 1))
        save(directory / "checkpoints", trainer, step, 12 * step)
        states.append(whole([owned(trainer)]))
    return directory, states


def averaged(state: dict[str, Tensors]) -> Tensors:
    """What was frozen as it is."""
    assert 0 < len(state["ema"]) < len(state["master"])
    return {**state["master"], **state["ema"]}


def command(monkeypatch, tool, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, arguments)])
    tool.main()


def test_hugging_face_is_given_the_average_and_what_was_frozen(run, tmp_path, monkeypatch, capsys):
    directory, states = run
    command(monkeypatch, convert_checkpoint, directory, tmp_path / "hf", "--to", "hf", "--ema")
    found, expected = load_file(tmp_path / "hf" / "model.safetensors"), averaged(states[-1])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert np.array_equal(tensor.double().numpy(), expected[name]), name
    assert "left out: the weights whose average this is; the optimizer's moments" in capsys.readouterr().out


def test_a_checkpoint_of_the_average_is_a_model_that_is_asked_and_holds_no_other(run, tmp_path):
    directory, states = run
    source = convert(directory, tmp_path / "ours", "ours", average=True).source
    plain = convert(directory, tmp_path / "plain", "ours", weights_only=True)
    assert "the average of the weights, which --ema takes" in plain.left_out
    for name, stored in open_source(tmp_path / "ours").parameters.items():
        assert np.array_equal(stored.read().double().numpy(), averaged(states[-1])[name])
    with pytest.raises(UsageError, match=r"--ema: .*ours has no average of its weights; a run with train\.ema has"):
        open_source(tmp_path / "ours", average=True)
    # What --verify holds against transformers is what is written.
    of_average, of_source, of_weights = (
        convert_checkpoint.logits_of(one)(IDS) for one in (tmp_path / "ours", source, directory)
    )
    assert torch.equal(of_average, of_source)
    assert (of_average - of_weights).abs().max() > 1e-3


def test_several_checkpoints_averages_have_a_mean(run, tmp_path, monkeypatch):
    directory, (first, second) = run
    command(monkeypatch, merge_checkpoints, directory, "--last", 2, "--ema", "--target", tmp_path / "mean")
    for name, stored in open_source(tmp_path / "mean").parameters.items():
        expected = (averaged(first)[name] + averaged(second)[name]) / 2
        np.testing.assert_allclose(stored.read().double().numpy(), expected, rtol=0, atol=1e-7)


def test_what_has_no_average_is_refused_by_its_kind(tmp_path):
    model = model_of()
    hf = write_hf(tmp_path / "hf", model, weights_of(model))
    gguf = write_gguf(tmp_path / "m.gguf", model, weights_of(model))
    for path, kind in ((hf, "Hugging Face directory"), (gguf, "GGUF file")):
        with pytest.raises(UsageError, match=f"--ema: {path} is a {kind}; only a checkpoint of ours has an average"):
            convert(path, tmp_path / "ours", "ours", average=True)
    assert not (tmp_path / "ours").exists()
