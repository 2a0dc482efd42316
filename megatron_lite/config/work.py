"""Multiplications that the model's parts cost: what a pipeline balances, and what FLOPs a token takes are counted from.

A causal query is charged for the (s + 1) / 2 keys that it sees on average, not for the whole square; norms,
activations and the embedding's lookup are no matrix products and count nothing.
"""

from collections.abc import Mapping

from megatron_lite.config.tree import LoraConfig, ModelConfig, Target


def block_parameters(model: ModelConfig) -> int:
    """Weights of one block's projections."""
    query_width = model.num_attention_heads * model.head_dim
    key_value_width = model.num_key_value_heads * model.head_dim
    attention = model.hidden_size * (2 * query_width + 2 * key_value_width)
    return attention + 3 * model.hidden_size * model.intermediate_size


def block_products(model: ModelConfig, sequence_length: int) -> int:
    """Multiplications of one block's forward pass a token: one a weight, and attention's two products, h (s + 1).

    h is num_attention_heads x head_dim: grouped key-value heads save projections, not products.
    """
    return block_parameters(model) + model.num_attention_heads * model.head_dim * (sequence_length + 1)


def head_products(model: ModelConfig) -> int:
    """Multiplications of the head's forward pass a token: one a weight."""
    return model.hidden_size * (model.vocab_size if model.head == "logits" else 1)


def adapter_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """Weights of one block's adapters: [rank, in] and [out, rank] of each target."""
    hidden, ffn = model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    widths: Mapping[Target, int] = {
        "q_proj": hidden + queries, "k_proj": hidden + keys, "v_proj": hidden + keys, "o_proj": queries + hidden,
        "gate_proj": hidden + ffn, "up_proj": hidden + ffn, "down_proj": ffn + hidden,
    }  # fmt: skip
    return lora.rank * sum(widths[target] for target in lora.targets)
