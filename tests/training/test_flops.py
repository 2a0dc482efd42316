"""The FLOP formula against PyTorch's own counter over an independent model, and MFU against plain division."""

from math import prod
from typing import get_args

import pytest
import torch
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.config.presets import PRESETS
from megatron_lite.config.tree import Target
from megatron_lite.config.work import adapter_parameters
from megatron_lite.model.parameters import Specification
from megatron_lite.training.flops import flops_per_token, matmul_parameters, model_flops_utilization, peak_flops

MODEL = ModelConfig(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=50,
)
SEQUENCE = 7


def counted_flops(model: ModelConfig, sequence: int, lora: LoraConfig | None = None) -> int:
    """Forward and backward of a decoder written out head by head and query by query, each query over its own keys.

    With `lora` (of o_proj and down_proj) all weights but the adapters' are frozen.
    """
    head_dim = model.hidden_size // model.num_attention_heads
    group = model.num_attention_heads // model.num_key_value_heads

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, requires_grad=lora is None)

    def adapted(x: torch.Tensor, rows: int) -> torch.Tensor:
        plain = linear(x, weight(rows, x.shape[-1]))
        if lora is None:
            return plain
        narrow = linear(x, torch.randn(lora.rank, x.shape[-1], requires_grad=True))
        return plain + linear(narrow, torch.randn(rows, lora.rank, requires_grad=True))

    # The embedding's output needs a gradient too, as in training.
    hidden = torch.randn(sequence, model.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        for _ in range(model.num_hidden_layers):
            heads = []
            keys = [linear(hidden, weight(head_dim, model.hidden_size)) for _ in range(model.num_key_value_heads)]
            values = [linear(hidden, weight(head_dim, model.hidden_size)) for _ in range(model.num_key_value_heads)]
            for head in range(model.num_attention_heads):
                query = linear(hidden, weight(head_dim, model.hidden_size))
                key, value = keys[head // group], values[head // group]
                rows = [torch.softmax(query[t : t + 1] @ key[: t + 1].T, -1) @ value[: t + 1] for t in range(sequence)]
                heads.append(torch.cat(rows))
            hidden = adapted(torch.cat(heads, -1), model.hidden_size)
            gate = linear(hidden, weight(model.intermediate_size, model.hidden_size))
            up = linear(hidden, weight(model.intermediate_size, model.hidden_size))
            hidden = adapted(silu(gate) * up, model.hidden_size)
        ends = model.vocab_size if model.head == "logits" else 1
        linear(hidden, weight(ends, model.hidden_size)).sum().backward()
    return counter.get_total_flops()


def test_the_formula_is_what_pytorch_counts_over_an_independent_model() -> None:
    assert flops_per_token(MODEL, SEQUENCE) * SEQUENCE == counted_flops(MODEL, SEQUENCE)


def test_a_scalar_head_is_multiplied_by_one_row() -> None:
    scalar = MODEL.model_copy(update={"head": "scalar"})
    assert flops_per_token(scalar, SEQUENCE) * SEQUENCE == counted_flops(scalar, SEQUENCE)


def test_frozen_weights_have_no_gradient_to_work_out() -> None:
    lora = LoraConfig(rank=3, targets=("o_proj", "down_proj"))
    assert flops_per_token(MODEL, SEQUENCE, lora) * SEQUENCE == counted_flops(MODEL, SEQUENCE, lora)


@pytest.mark.parametrize("target", get_args(Target))
def test_each_adapter_has_the_weights_of_its_two_matrices(target: str) -> None:
    model = MODEL.model_copy(update={"head_dim": 10})
    adapter = Specification(model, 0.02, 1, 0, LoraConfig(rank=3, targets=(target,))).adapter(0)
    assert adapter_parameters(model, LoraConfig(rank=3, targets=(target,))) == sum(prod(one.shape) for one in adapter)


def test_65b_multiplies_by_all_but_the_embedding_and_the_norms() -> None:
    model = ModelConfig(**PRESETS["65b"])
    per_block = 8192 * 8192 * 2 + 8192 * 1024 * 2 + 3 * 8192 * 25600
    assert matmul_parameters(model) == 80 * per_block + 8192 * 128_000


def test_mfu_is_achieved_over_peak() -> None:
    assert model_flops_utilization(4e14, 2, 1e15) == pytest.approx(0.2)


def test_mfu_is_unknown_where_the_peak_is() -> None:
    assert peak_flops("cpu", "bfloat16") is None
    assert peak_flops("NVIDIA GB200", "bfloat16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert model_flops_utilization(1e12, 1, None) is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
    ],
)
def test_devices_are_known_by_the_name_they_give_themselves(device: str, peak: float) -> None:
    assert peak_flops(device, "bfloat16") == peak
