"""Weights written in another dtype: rounded to the nearest, and what that did is said."""

import json
import sys

import convert_checkpoint
import numpy as np
import pytest
import torch
from exchange.models import distance, model_of, weights_of, write_hf
from exchange.test_hugging_face import tensors_in
from torch import Tensor

from megatron_lite.errors import DataError
from megatron_lite.exchange import convert, open_source

MODEL = model_of()
COUNT = len(weights_of(MODEL))


def nearest(weight: Tensor, dtype: str) -> np.ndarray:
    """float32 numbers rounded by integers alone, a tie to the even one, as float32."""
    if dtype == "float16":
        return weight.numpy().astype(np.float16).astype(np.float32)
    bits = weight.numpy().view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("to", ["ours", "hf"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_the_nearest_of_the_dtype(tmp_path, monkeypatch, dtype, to):
    monkeypatch.setattr("megatron_lite.exchange.rounding.SLICE", 1000)  # several of a matrix, the last one shorter
    weights = weights_of(MODEL)
    done = convert(write_hf(tmp_path / "hf", MODEL, weights), tmp_path / "out", to, dtype=dtype)
    assert done.rounded == f"{COUNT} tensors rounded from float32 to {dtype}"
    for name, stored in open_source(tmp_path / "out").parameters.items():
        assert stored.dtype == getattr(torch, dtype)
        assert np.array_equal(stored.read().float().numpy(), nearest(weights[name], dtype)), name
    if to == "ours":
        rounded = {name: torch.from_numpy(nearest(weight, dtype)) for name, weight in weights.items()}
        assert distance(tmp_path / "out", MODEL, rounded) < 1e-10
    else:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == dtype


def test_a_wider_dtype_keeps_every_number_and_one_that_is_there_every_bit(tmp_path):
    weights = weights_of(MODEL, torch.bfloat16)
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-4
    source = write_hf(tmp_path / "hf", MODEL, weights)
    done = convert(source, tmp_path / "wide", "hf", dtype="float32")
    assert done.rounded == f"{COUNT - 1} tensors of bfloat16 in float32, no number changed; 1 tensor of float32 kept"
    for name, tensor in tensors_in(tmp_path / "wide").items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name].float())


def test_a_number_that_float16_has_no_room_for_is_refused_and_leaves_nothing(tmp_path):
    weights = weights_of(MODEL)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = -70000.0
    source = write_hf(tmp_path / "hf", MODEL, weights)
    line = r"model\.layers\.1\.mlp\.up_proj\.weight holds -70000, and float16 nothing beyond 65504: take another"
    with pytest.raises(DataError, match=line):
        convert(source, tmp_path / "half", "ours", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    convert(source, tmp_path / "brain", "ours", dtype="bfloat16")


def test_the_command_says_what_was_rounded(tmp_path, monkeypatch, capsys):
    source = write_hf(tmp_path / "hf", MODEL, weights_of(MODEL))
    arguments = [str(source), str(tmp_path / "small"), "--to", "hf", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *arguments])
    convert_checkpoint.main()
    assert capsys.readouterr().out.splitlines()[-1] == f"{COUNT} tensors rounded from float32 to bfloat16"
