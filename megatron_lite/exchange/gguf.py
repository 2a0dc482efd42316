"""A GGUF file as a source: llama.cpp's names and metadata, and the order of its rows, turned into Hugging Face's."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.config.complaints import show
from megatron_lite.errors import DataError
from megatron_lite.exchange.architectures import checked_model
from megatron_lite.exchange.gguf_file import GgufFile, mapped_to, open_gguf
from megatron_lite.exchange.gguf_tokenizer import gguf_tokenizer
from megatron_lite.exchange.source import HEAD, Facts, Source, Stored, common_dtype, fitting

KIND = "GGUF file"
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Keys of metadata under `llama.` that are the model's fields.
FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
}
OPTIONAL = {"num_key_value_heads": "attention.head_count_kv"}
REALS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
# Others that say how large, or that have to say what the model here has built in.
OF_HEAD = ("attention.key_length", "attention.value_length", "rope.dimension_count")
BUILT_IN = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0}
KNOWN = {*FIELDS.values(), *OPTIONAL.values(), *REALS.values(), *OF_HEAD, *BUILT_IN, "context_length", "vocab_size"}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def open_gguf_model(path: Path) -> Source:
    """Raises DataError for a model that is not Llama's, a kind of tensor that is not read, a file that is not whole."""
    file = open_gguf(path)
    found = {_name(name): stored for name, stored in file.tensors.items()}
    model, facts = _model(file, found)
    parameters = fitting(path, model, {name: _rows_in_order(name, one, model) for name, one in found.items()})
    dtype = common_dtype(stored.dtype for stored in parameters.values())
    return Source(path, KIND, model, facts, dtype, parameters, *_tokenizer(file))


def _tokenizer(file: GgufFile) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Its files and the chat template, and what is left out: a tokenizer of a kind that metadata do not tell."""
    if "tokenizer.ggml.tokens" not in file.metadata:
        return {}, ()
    try:
        return gguf_tokenizer(file.metadata), ()
    except ValueError as reason:
        template = file.metadata.get("tokenizer.chat_template")
        carried = {} if not isinstance(template, str) else {"chat_template.jinja": template.encode()}
        return carried, (f"the tokenizer ({reason})",)


def _name(name: str) -> str:
    """Hugging Face's name of a tensor; one that is none of ours keeps its own, by which it is refused."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in OF_BLOCK:
        return f"model.layers.{block[1]}.{OF_BLOCK[block[2]]}.weight"
    stem = name.removesuffix(".weight")
    return f"{NAMES[stem]}.weight" if stem in NAMES and stem != name else name


def _rows_in_order(name: str, stored: Stored, model: ModelConfig) -> Stored:
    """llama.cpp turns neighbouring numbers of a head by an angle, Hugging Face those half a head apart, so its rows of
    queries and keys lie in another order.
    """
    heads = {"q_proj": model.num_attention_heads, "k_proj": model.num_key_value_heads}
    projection = name.split(".")[-2] if name.endswith(".weight") and "." in name[:-7] else ""
    return mapped_to(stored, partial(halves_from_pairs, heads=heads[projection])) if projection in heads else stored


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows (pair, member) of each head as (member, pair)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _model(file: GgufFile, found: Mapping[str, Stored]) -> tuple[ModelConfig, Facts]:
    metadata, where = file.metadata, str(file.path)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise DataError(f"{where}: general.architecture = {show(architecture)}: read is llama")
    if metadata.get("split.count", 1) != 1:
        raise DataError(f"{where}: split.count = {metadata['split.count']}: a model in one file is read")
    ours = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    _check_keys(ours, where)
    if missing := [key for key in (*FIELDS.values(), "context_length") if key not in ours]:
        raise DataError(f"{where} has no llama.{missing[0]}, which says the model's shape")
    if "token_embd.weight" not in file.tensors:
        raise DataError(f"{where} has no tensor token_embd.weight, which the model needs")
    fields: dict[str, Any] = {name: ours[key] for name, key in FIELDS.items()}
    fields["num_key_value_heads"] = ours.get(OPTIONAL["num_key_value_heads"], fields["num_attention_heads"])
    fields |= {name: _shortest(ours[key]) for name, key in REALS.items() if key in ours}
    fields["head_dim"] = ours.get(OF_HEAD[0])
    fields["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    fields["tie_word_embeddings"] = HEAD not in found
    model = checked_model(fields, where)
    if ours.get("vocab_size", model.vocab_size) != model.vocab_size:
        raise DataError(f"{where}: llama.vocab_size = {ours['vocab_size']}, token_embd.weight has {model.vocab_size}")
    for key in OF_HEAD:
        if ours.get(key, model.head_dim) != model.head_dim:
            raise DataError(
                f"{where}: llama.{key} = {ours[key]}: the model here has one size of a head, {model.head_dim}"
            )
    named = {ours: f"tokenizer.ggml.{theirs}" for ours, theirs in TOKENS.items()}
    return model, Facts(
        ours["context_length"], tokens={name: metadata[key] for name, key in named.items() if key in metadata}
    )


def _check_keys(ours: Mapping[str, Any], where: str) -> None:
    for key, value in ours.items():
        if key in BUILT_IN and value != BUILT_IN[key]:
            raise DataError(f"{where}: llama.{key} = {show(value)}: the model here has no such thing")
        if key not in KNOWN:
            raise DataError(
                f"{where}: llama.{key} = {show(value)}: an unknown key, which may change the model's mathematics"
            )


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that it is: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
