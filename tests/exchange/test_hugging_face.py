import json

import pytest
import torch
from exchange.models import IDS, distance, logits_of, model_of, weights_of, write_hf
from safetensors.torch import load_file
from support.generation import ONE, loaded
from support.layouts import Layout, build_trainer

from megatron_lite.checkpoint import load_weights, open_checkpoint, save
from megatron_lite.exchange import convert


def tensors_in(directory) -> dict[str, torch.Tensor]:
    """Of a Hugging Face directory, by safetensors' own reader."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        inside = load_file(path)
        assert not found.keys() & inside.keys()
        found |= inside
    return found


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("files", [1, 3])
def test_a_directory_becomes_a_checkpoint_with_its_logits(tmp_path, tied, files):
    model = model_of(tie_word_embeddings=tied)
    weights = weights_of(model)
    convert(write_hf(tmp_path / "hf", model, weights, files), tmp_path / "ours", "ours")
    assert distance(tmp_path / "ours", model, weights) < 1e-10


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("most", [10**9, 40_000])
def test_to_ours_and_back_every_bit_is_there(tmp_path, dtype, most, tied):
    model = model_of(tie_word_embeddings=tied)
    weights = weights_of(model, dtype)
    source = write_hf(tmp_path / "hf", model, weights, 2)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 5], "temperature": 0.6}')
    (source / "tokenizer.json").write_text('{"made": "up"}')
    written = convert(source, tmp_path / "ours", "ours", most=most)
    assert written.source.dtype == str(dtype).removeprefix("torch.")
    again = convert(tmp_path / "ours", tmp_path / "again", "hf", most=most)
    assert again.left_out == ()
    assert_same_bits(tensors_in(tmp_path / "again"), weights)
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    told = ("eos_token_id", "bos_token_id", "max_position_embeddings", "initializer_range", "rms_norm_eps")
    assert [config[key] for key in told] == [before[key] for key in told]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == before["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == str(dtype).removeprefix("torch.")


def test_files_are_as_large_as_they_may_be_and_the_index_lists_them(tmp_path):
    model = model_of()
    weights = weights_of(model)
    convert(write_hf(tmp_path / "hf", model, weights), tmp_path / "ours", "ours")
    done = convert(tmp_path / "ours", tmp_path / "again", "hf", most=100_000)
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert done.files == len(set(index["weight_map"].values())) == len(list((tmp_path / "again").glob("*.safetensors")))
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    assert index["weight_map"].keys() == weights.keys()
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "again" / file)
    assert all(path.stat().st_size < 105_000 for path in (tmp_path / "again").glob("*.safetensors"))


def test_a_trained_checkpoint_goes_out_and_comes_back(tmp_path):
    """Saved by a run, in blocks and with moments; what is left out is said."""
    trainer = build_trainer(Layout(dtype="float32", tied=True))
    save(tmp_path / "run", trainer, 3, 36)
    done = convert(tmp_path / "run", tmp_path / "hf", "hf")
    moments, place = done.left_out
    assert (
        moments.startswith("the optimizer's moments of ")
        and place == "the step (3) and the data's position (36 samples)"
    )
    convert(tmp_path / "hf", tmp_path / "ours", "ours")
    before, after = (logits_of(tmp_path / path, IDS[:16]) for path in ("run/step_3", "ours"))
    assert torch.equal(before, after)
    config = trainer.config
    checkpoint = open_checkpoint(tmp_path / "ours", ONE)
    load_weights(checkpoint, config.model, trainer.stage, trainer.mesh)  # as checkpoint.init does
    assert loaded(checkpoint).longest == config.train.sequence_length  # as generation does


def test_weights_only_leaves_the_moments_out_of_a_checkpoint_and_files_out_of_a_directory(tmp_path):
    save(tmp_path / "run", build_trainer(Layout(dtype="float32")), 3, 36)
    done = convert(tmp_path / "run", tmp_path / "small", "ours", weights_only=True)
    assert "moments" in done.left_out[0]
    index = open_checkpoint(tmp_path / "small", ONE).index
    assert not any(parameter.trained for parameter in index.main.parameters.values())
    whole, small = (sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in
                    (tmp_path / "run" / "step_3", tmp_path / "small"))  # fmt: skip
    assert small < 0.4 * whole
    model = model_of()
    source = write_hf(tmp_path / "hf", model, weights_of(model))
    (source / "tokenizer.json").write_text("{}")
    done = convert(source, tmp_path / "bare", "ours", weights_only=True)
    assert done.left_out == ("tokenizer.json",) and not (tmp_path / "bare" / "tokenizer.json").exists()


def test_a_tied_head_that_is_there_twice_is_written_once(tmp_path):
    model = model_of(tie_word_embeddings=True)
    weights = weights_of(model)
    twice = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    convert(write_hf(tmp_path / "hf", model, twice), tmp_path / "ours", "ours")
    convert(tmp_path / "ours", tmp_path / "again", "hf")
    assert_same_bits(tensors_in(tmp_path / "again"), weights)


def test_old_files_rotary_angles_are_left_out_and_that_is_said(tmp_path):
    model = model_of()
    weights = {**weights_of(model), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    done = convert(write_hf(tmp_path / "hf", model, weights), tmp_path / "ours", "ours")
    assert done.left_out == ("rotary angles, which follow from rope_theta",)


def test_qwens_head_norms_and_head_size_go_in_and_out(tmp_path):
    model = model_of(qk_norm=True, head_dim=24)
    weights = weights_of(model)
    named = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 24, "sliding_window": 8}
    convert(write_hf(tmp_path / "hf", model, weights, **named), tmp_path / "ours", "ours")
    assert distance(tmp_path / "ours", model, weights) < 1e-10
    convert(tmp_path / "ours", tmp_path / "again", "hf")
    assert_same_bits(tensors_in(tmp_path / "again"), weights)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["architectures"], config["model_type"], config["head_dim"]) == (["Qwen3ForCausalLM"], "qwen3", 24)
