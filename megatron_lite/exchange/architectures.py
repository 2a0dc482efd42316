"""config.json in and out: which models of Hugging Face are ours, and what each of its keys means for that.

A key is carried into the model's configuration, or has to have the one value under which their mathematics are ours,
or is known to be harmless. Any other is refused by name, since it may change the mathematics.
"""

from collections.abc import Mapping
from typing import Any

from megatron_lite.config import ModelConfig
from megatron_lite.config.complaints import show
from megatron_lite.config.load import check_tree
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.source import Facts

Tree = Mapping[str, Any]

# What transformers takes where a key is absent.
DEFAULTS: Mapping[str, Tree] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
    "Qwen3ForCausalLM": {"max_position_embeddings": 32768, "head_dim": 128, "num_key_value_heads": 32},
}
MODEL_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# What ends in a score is that of one label, as reward models are written.
SCORING = {name.replace("CausalLM", "SequenceClassification"): name for name in DEFAULTS}
# Near relatives, and what the model here would need for them.
LACKING = {
    "Qwen2ForCausalLM": "a bias in q, k and v",
    "Qwen3MoeForCausalLM": "experts",
    "Gemma2ForCausalLM": "softcapping and norms after each part",
    "MixtralForCausalLM": "experts",
}
CARRIED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "tie_word_embeddings", "head_dim",
)  # fmt: skip
REQUIRED = (*CARRIED[:4], "vocab_size")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys with the values that the model here has built in; null says the same.
BUILT_IN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "is_llama_config": (True,),
    "use_sliding_window": (False,),
}
# What only says how a file was written, how text is sampled, or how a program is to run.
HARMLESS = frozenset(
    """
    _name_or_path architectures num_labels model_type torch_dtype dtype transformers_version use_cache pretraining_tp
    max_position_embeddings initializer_range bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
    cls_token_id mask_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    rope_theta rope_scaling rope_parameters sliding_window max_window_layers layer_types
    return_dict output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss pruned_heads
    gradient_checkpointing chunk_size_feed_forward is_decoder finetuning_task id2label label2id problem_type
    task_specific_params prefix tokenizer_class unsloth_version unsloth_fixed transformers.js_config
    _attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens remove_invalid_values
    """.split()
)
# Kinds of scaled rotary angles that begin at the context which the model was made for, if they do not say another.
FROM_CONTEXT = ("yarn", "llama3")


def model_from(tree: Tree, where: str) -> tuple[ModelConfig, Facts]:
    """The model that a config.json describes. Raises DataError, in one line that names the key, for one that is not
    ours.
    """
    given = {key: value for key, value in tree.items() if value is not None}
    architecture, scores = _architecture(given, where)
    full = {**DEFAULTS[architecture], **{key: value for key, value in tree.items() if key in DEFAULTS[architecture]}}
    full |= given
    _check_keys(full, where)
    fields = {key: full[key] for key in CARRIED if full.get(key) is not None}
    if missing := [key for key in REQUIRED if key not in fields]:
        raise DataError(f"{where} has no {missing[0]}, which says the model's shape")
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("rms_norm_eps", 1e-6)
    fields["qk_norm"] = architecture == "Qwen3ForCausalLM"
    if scores:
        _check_labels(given, where)
        fields |= {"head": "scalar", "tie_word_embeddings": False}
    _check_context(full, windows=architecture != "Qwen3ForCausalLM", where=where)
    fields["rope_theta"], fields["rope_scaling"] = _rope(full, where)
    model = checked_model(fields, where)
    tokens = {key: given[key] for key in TOKENS if key in given}
    return model, Facts(full["max_position_embeddings"], given.get("initializer_range", 0.02), tokens)


def checked_model(fields: Tree, where: str) -> ModelConfig:
    """Raises DataError for a shape that cannot be built here."""
    try:
        return check_tree(fields, ModelConfig)
    except UsageError as error:
        raise DataError(f"{where}: {error}") from None


def config_json(model: ModelConfig, facts: Facts, dtype: str) -> dict[str, Any]:
    """What transformers 4 and 5 both read as this model: the one looks for rope_theta, the other for rope_parameters,
    and each without its own takes a base of 10,000 and says nothing.

    Raises DataError for a model with what is not written here.
    """
    _check_written(model)
    causal = "Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"
    scoring = next(name for name, policy in SCORING.items() if policy == causal)
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if model.head == "scalar" else {}
    scaling = None if model.rope_scaling is None else model.rope_scaling.model_dump(mode="json", exclude_none=True)
    return {
        "architectures": [scoring if labels else causal],
        "model_type": next(key for key, value in MODEL_TYPES.items() if value == causal),
        **labels,
        **{key: getattr(model, key) for key in CARRIED},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({"use_sliding_window": False} if model.qk_norm else {"mlp_bias": False}),
        "max_position_embeddings": facts.context,
        "initializer_range": facts.initializer_range,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": model.rope_theta},
        **facts.tokens,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }


def _check_written(model: ModelConfig) -> None:
    """Any other field must be off, or the file would be of another function."""
    for name, value in model.model_dump(exclude={*CARRIED, "rope_theta", "rope_scaling", "qk_norm", "head"}).items():
        if value not in (None, False):
            raise DataError(f"model.{name} = {show(value)}: a config.json has no key for it")


def _architecture(tree: Tree, where: str) -> tuple[str, bool]:
    """Of the policy, and whether it ends in a score. `architectures` and `model_type` name it, and may not differ."""
    named = tree.get("architectures") or [MODEL_TYPES.get(tree.get("model_type", ""), tree.get("model_type"))]
    given = str(named[0] if isinstance(named, list) and len(named) == 1 else named)
    found = SCORING.get(given, given)
    if found not in DEFAULTS:
        lacks = LACKING.get(found)
        because = f"it has {lacks}, which the model here has not" if lacks else f"read are {', '.join(DEFAULTS)}"
        raise DataError(f"{where}: architectures = {show(found)}: {because}")
    model_type = tree.get("model_type")
    if model_type is not None and MODEL_TYPES.get(model_type) != found:
        raise DataError(f"{where}: model_type = {show(model_type)}: is not that of {found}")
    return found, given in SCORING


def _check_labels(tree: Tree, where: str) -> None:
    """A score is what transformers makes of one label; of a configuration without labels it makes two."""
    labels = tree.get("num_labels", len(tree.get("id2label") or (0, 1)))
    if labels != 1:
        raise DataError(f"{where}: num_labels = {show(labels)}: must be 1, the score of a reward model")


def _check_keys(tree: Tree, where: str) -> None:
    for key, value in tree.items():
        if key in BUILT_IN and value not in BUILT_IN[key]:
            raise DataError(f"{where}: {key} = {show(value)}: the model here has {show(BUILT_IN[key][0])} built in")
        if key not in BUILT_IN and key not in CARRIED and key not in HARMLESS:
            raise DataError(f"{where}: {key} = {show(value)}: an unknown key, which may change the model's mathematics")
    if any(kind != "full_attention" for kind in tree.get("layer_types", ())):
        raise DataError(f"{where}: layer_types = {show(tree['layer_types'])}: must be full_attention in every layer")


def _rope(tree: Tree, where: str) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling). Both stand in rope_parameters, or as rope_theta and rope_scaling beside each other, or twice;
    then they must say the same.
    """
    inner, outer = tree.get("rope_parameters") or {}, tree.get("rope_scaling") or {}
    if not isinstance(inner, dict) or not isinstance(outer, dict):
        raise DataError(f"{where}: rope_parameters and rope_scaling must hold keys")
    bases = [place["rope_theta"] for place in (tree, inner, outer) if place.get("rope_theta") is not None]
    if any(base != bases[0] for base in bases):
        raise DataError(f"{where}: rope_theta = {' and '.join(map(show, bases))}: must be the same everywhere")
    scalings = [_scaling(place, tree["max_position_embeddings"], where) for place in (inner, outer) if place]
    if any(scaling != scalings[0] for scaling in scalings):
        raise DataError(f"{where}: rope_parameters and rope_scaling say different things: must be the same")
    return bases[0] if bases else 10000.0, scalings[0] if scalings else None


def _scaling(place: Tree, context: Any, where: str) -> dict[str, Any] | None:
    """What the model's configuration takes, or None for plain angles; what it does not know it refuses by name."""
    kind = place.get("rope_type") or place.get("type") or "default"
    given = {key: value for key, value in place.items() if key not in ("rope_type", "type", "rope_theta")}
    if given.pop("partial_rotary_factor", 1.0) not in (1.0, None):
        raise DataError(f"{where}: partial_rotary_factor = {place['partial_rotary_factor']}: must be 1")
    given = {key: value for key, value in given.items() if value is not None}
    if kind == "default":
        for key, value in given.items():
            raise DataError(f"{where}: {key} = {show(value)}: means nothing with rope_type = default")
        return None
    if kind in FROM_CONTEXT:
        given.setdefault("original_max_position_embeddings", context)
    return {"rope_type": kind, **given}


def _check_context(tree: Tree, windows: bool, where: str) -> None:
    """A window that no position of the context looks past does not matter."""
    window, context = tree.get("sliding_window"), tree["max_position_embeddings"]
    if type(context) is not int or context < 1:
        raise DataError(f"{where}: max_position_embeddings = {show(context)}: must be a number of positions")
    if windows and window is not None and window < context:
        raise DataError(
            f"{where}: sliding_window = {show(window)}: the model here attends to all of "
            f"max_position_embeddings = {context}"
        )
