import json

import gguf
import numpy as np
import pytest
import torch
from exchange.models import distance, gguf_name, model_of, weights_of, write_gguf
from gguf import GGMLQuantizationType

from megatron_lite.errors import DataError
from megatron_lite.exchange import convert, open_source
from megatron_lite.exchange.gguf_file import open_gguf

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_gguf_package_to_the_bit(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("megatron_lite.exchange.gguf_file.SLICE", 1000)  # several slices, the last of them shorter
    model = model_of()
    path = write_gguf(tmp_path / "m.gguf", model, weights_of(model), kind)
    ours = open_gguf(path).tensors
    theirs = gguf.GGUFReader(path).tensors
    assert len(theirs) == len(ours)
    for tensor in theirs:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = ours[tensor.name].read().float().numpy().reshape(expected.shape)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=tensor.name)


@pytest.mark.parametrize("kind", ("Q8_0", "Q4_0", "Q4_1"))
def test_every_byte_means_what_it_means_there(tmp_path, kind):
    """Blocks of all bytes, and scales of all finite exponents and signs."""
    one = GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[one]
    blocks = np.random.default_rng(0).integers(0, 256, (4096, size), np.uint8)
    blocks[:, 1] &= 0b11111011  # no infinity, no nan
    if kind == "Q4_1":
        blocks[:, 3] &= 0b11111011
    writer = gguf.GGUFWriter(tmp_path / "blocks.gguf", "llama")
    writer.add_tensor("x", blocks.reshape(64, -1), raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_gguf(tmp_path / "blocks.gguf").tensors["x"].read().numpy()
    expected = gguf.quants.dequantize(blocks.reshape(64, -1), one)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_becomes_a_checkpoint_with_its_logits(tmp_path, tied):
    model = model_of(tie_word_embeddings=tied)
    weights = weights_of(model)
    done = convert(write_gguf(tmp_path / "m.gguf", model, weights), tmp_path / "ours", "ours")
    assert done.source.model == model  # 0.001 and 500.0, though the file has float32's neighbours of them
    kinds = "gpt2 (byte-level BPE) or llama (SentencePiece)"
    assert done.left_out == (f"the tokenizer (it is of the kind None, not {kinds})",)
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert distance(tmp_path / "ours", model, weights) < 1e-10


def test_a_file_becomes_a_directory(tmp_path):
    model = model_of()
    convert(write_gguf(tmp_path / "m.gguf", model, weights_of(model), "Q8_0"), tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["eos_token_id"], config["max_position_embeddings"], config["dtype"]) == (2, 64, "float32")
    assert open_source(tmp_path / "hf").model == model


def test_a_kind_that_is_not_read_is_named(tmp_path):
    model = model_of()
    path = write_gguf(tmp_path / "m.gguf", model, weights_of(model), "Q5_0")
    with pytest.raises(DataError, match=r"m\.gguf: token_embd\.weight is Q5_0; must be one of F32, F16, BF16, Q4_0"):
        open_source(path)


def test_a_file_that_is_cut_short_anywhere_is_one_sentence(tmp_path):
    model = model_of()
    data = write_gguf(tmp_path / "m.gguf", model, weights_of(model)).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (5, 20, 30, 200, 1000, 3000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut\.gguf is (damaged or )?cut short"):
            open_source(path)


@pytest.mark.parametrize(
    "metadata, complaint",
    [
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type = yarn"),
        ({"expert_count": 8}, "llama.expert_count = 8"),
        ({"attention.sliding_window": 32}, "llama.attention.sliding_window = 32: an unknown key"),
        ({"attention.key_length": 32}, "llama.rope.dimension_count = 16: the model here has one size of a head, 32"),
        ({"vocab_size": 60}, "llama.vocab_size = 60, token_embd.weight has 61"),
    ],
)
def test_what_the_model_has_not_is_refused_by_name(tmp_path, metadata, complaint):
    model = model_of()
    path = write_gguf(tmp_path / "m.gguf", model, weights_of(model), **metadata)
    with pytest.raises(DataError, match=complaint.replace(".", r"\.")):
        open_source(path)


def test_tensors_that_scale_rotary_angles_and_biases_are_refused_by_name(tmp_path, monkeypatch):
    model = model_of()
    names = {"rope_freqs.weight": torch.ones(8), "blk.0.attn_q.bias": torch.ones(96)}
    real = gguf_name
    monkeypatch.setattr("exchange.models.gguf_name", lambda name: name if name in names else real(name))
    for name, tensor in names.items():
        path = write_gguf(tmp_path / f"{name}.gguf", model, {**weights_of(model), name: tensor})
        with pytest.raises(DataError, match=f"has the tensor {name}, of which this model is not"):
            open_source(path)
