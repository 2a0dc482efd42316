"""Tiny models as other programs would write them: by safetensors' and gguf's own writers, never by ours."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from support import reference
from support.generation import ONE
from torch import Tensor

from megatron_lite.checkpoint import open_checkpoint
from megatron_lite.config import ModelConfig
from megatron_lite.exchange.source import shapes_of
from megatron_lite.inference.opening import load_model

Weights = dict[str, Tensor]
# Each number differs from every default, and none is a power of two by accident: 61 pieces leave padding.
SHAPE = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "vocab_size": 61, "rope_theta": 500.0, "rms_norm_eps": 1e-3,
}  # fmt: skip
IDS = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(1))


def model_of(**fields) -> ModelConfig:
    return ModelConfig(**{**SHAPE, **fields})


def weights_of(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(7)
    made = {}
    for name, shape in shapes_of(model).items():
        values = torch.randn(shape, generator=generator) * 0.3
        made[name] = (values + 1 if len(shape) == 1 else values).to(dtype)
    return made


def tree_of(model: ModelConfig, **changes) -> dict:
    """A config.json as transformers 4 writes it."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": [2, 5], "initializer_range": 0.03,
        "torch_dtype": "float32", "transformers_version": "4.57.1", "use_cache": True, "rope_scaling": None,
        **{key: getattr(model, key) for key in SHAPE}, "tie_word_embeddings": model.tie_word_embeddings, **changes,
    }  # fmt: skip


def write_hf(directory: Path, model: ModelConfig, weights: Weights, files: int = 1, **changes) -> Path:
    """A Hugging Face directory; with several files the tensors are dealt out in turn."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(tree_of(model, **changes)))
    if files == 1:
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return directory
    where = {name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, name in enumerate(weights)}
    for file in sorted(set(where.values())):
        save_file({name: weights[name] for name in weights if where[name] == file}, directory / file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


OF_GGUF = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{OF_GGUF[rest]}.weight"
    return f"{OF_GGUF[stem]}.weight"


def in_pairs(name: str, weight: Tensor, model: ModelConfig) -> np.ndarray:
    """llama.cpp's order of the rows of q and k, as its converter makes it."""
    heads = {"q_proj": model.num_attention_heads, "k_proj": model.num_key_value_heads}
    array = weight.numpy()
    for projection, count in heads.items():
        if projection in name:
            rows, columns = array.shape
            return array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return array


def write_gguf(
    path: Path, model: ModelConfig, weights: Weights, kind: str = "F32", vocabulary: dict | None = None, **metadata
) -> Path:
    """Matrices of one kind, norms in F32, as llama.cpp has them; `vocabulary` are a tokenizer's metadata, whole."""
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "embedding_length": model.hidden_size, "feed_forward_length": model.intermediate_size,
        "block_count": model.num_hidden_layers, "attention.head_count": model.num_attention_heads,
        "attention.head_count_kv": model.num_key_value_heads, "context_length": 64, "vocab_size": model.vocab_size,
        "rope.dimension_count": model.head_dim,
    }  # fmt: skip
    for key, value in {**numbers, **{k: v for k, v in metadata.items() if isinstance(v, int)}}.items():
        writer.add_uint32(f"llama.{key}", value)
    for key, value in {k: v for k, v in metadata.items() if isinstance(v, str)}.items():
        writer.add_string(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", model.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", model.rope_theta)
    some = {"eos_token_id": 2, "tokens": [f"piece {i}" for i in range(model.vocab_size)]}
    for key, value in (vocabulary or {f"tokenizer.ggml.{name}": one for name, one in some.items()}).items():
        add = {int: writer.add_uint32, list: writer.add_array, str: writer.add_string}[type(value)]
        add(key, value)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    for name, weight in weights.items():
        one = gguf.GGMLQuantizationType["F32" if weight.dim() == 1 else kind]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(in_pairs(name, weight, model), one), raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(checkpoint: Path, ids: Tensor = IDS) -> Tensor:
    """[T, V] of a checkpoint of ours, in float64."""
    return load_model(open_checkpoint(checkpoint, ONE), ONE, dtype="float64").logits(ids)


def distance(checkpoint: Path, model: ModelConfig, weights: Weights) -> float:
    """The largest difference of a logit between a checkpoint of ours and a plain model of the weights, in float64."""
    exact = {name: weight.double() for name, weight in weights.items()}
    ours = logits_of(checkpoint)
    assert ours.shape == (len(IDS), model.vocab_size), "padding of the vocabulary"
    return (ours - reference.logits(exact, IDS[None], model)[0]).abs().max().item()
