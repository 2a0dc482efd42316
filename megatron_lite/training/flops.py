"""Floating-point operations that a token costs, and the share of the device's peak they make (MFU).

The count is the mathematics' own: what recomputation or padding adds is not in it, and a causal query is
charged for the keys it may see, not for the whole square.
"""

import re

from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.config.work import adapter_parameters, block_parameters, block_products, head_products

# Dense bfloat16 peak in FLOP/s, from NVIDIA's data sheets (A100, H100, H200, HGX B200); figures printed there
# "with sparsity" are halved. The first name that stands in the device's name as a
# word of its own counts, so the narrower ones come first.
_PEAK_BFLOAT16 = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def matmul_parameters(model: ModelConfig) -> int:
    """Weights that every token is multiplied by: the projections and the head, not the embedding's lookup."""
    return model.num_hidden_layers * block_parameters(model) + head_products(model)


def flops_per_token(model: ModelConfig, sequence_length: int, lora: LoraConfig | None = None) -> int:
    """FLOPs of forward and backward for one token: 6 N + 6 L h (s + 1), that is 2 a multiplication, and twice
    that backward. With `lora` the N are frozen, whose own gradients are not worked out: 4 N, and 6 of each adapter's.

    N is `matmul_parameters` (Chowdhery et al. 2022, "PaLM", appendix B). PaLM's 12 L h s for attention's products
    charges all s keys, `block_products` the (s + 1) / 2 that a query sees on average under the causal mask.
    """
    layers, weights = model.num_hidden_layers, matmul_parameters(model)
    attention = layers * (block_products(model, sequence_length) - block_parameters(model))
    if lora is None:
        return 6 * (weights + attention)
    return 4 * weights + 6 * (attention + layers * adapter_parameters(model, lora))


def peak_flops(device_name: str, dtype: str) -> float | None:
    """A device's dense peak in FLOP/s, or None where no data sheet's figure is known: CPUs, and other dtypes."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in _PEAK_BFLOAT16.items() if re.search(rf"\b{name}\b", device_name)), None)


def model_flops_utilization(flops_per_second: float, devices: int, peak_flops_per_device: float | None) -> float | None:
    """MFU as a fraction; None where the peak is unknown, since a guess would be no measurement."""
    if peak_flops_per_device is None:
        return None
    return flops_per_second / (devices * peak_flops_per_device)
