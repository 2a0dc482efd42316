"""Rotary frequencies and the tables of their angles, plain or stretched for a longer context.

    plain   theta^(-2i/D)                                                       (Su et al. 2021, arXiv 2104.09864)
    linear  all divided by `factor`                                             (Chen et al. 2023, arXiv 2306.15595)
    llama3  of wavelength w: divided where w is above L / low_freq_factor, left where below L / high_freq_factor, and
            between them interpolated by L / w                                  (as Llama 3.1's released code)
    yarn    divided where a frequency turns less than beta_slow times in L positions, left where more than beta_fast
            times, between them interpolated by i; both tables times 0.1 ln(factor) + 1
                                                                (Peng et al. 2023, arXiv 2309.00071, section 3.2 to 3.4)

i = 0 .. D/2 - 1, D the head dimension, L the original context.
"""

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.config.rope import RopeScaling
from megatron_lite.kernels.reference.rope import angle_tables, rope_frequencies


def tables_of(model: ModelConfig, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin) [length, D/2] of positions 0 to length - 1, in `dtype` or float32, the wider of the two."""
    frequency = rope_frequencies(model.head_dim, model.rope_theta, device)
    scaling = model.rope_scaling
    if scaling is None:
        return angle_tables(length, frequency, dtype)
    cos, sin = angle_tables(length, _stretched(frequency, scaling, model), dtype)
    sharper = attention_factor(scaling)
    return cos * sharper, sin * sharper


def attention_factor(scaling: RopeScaling) -> float:
    """By which both tables are multiplied: scores grow by its square."""
    if scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _sharpness(scaling.factor, scaling.mscale) / _sharpness(scaling.factor, scaling.mscale_all_dim)
    return _sharpness(scaling.factor, 1.0)


def _sharpness(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * log(factor) + 1.0


def _stretched(frequency: Tensor, scaling: RopeScaling, model: ModelConfig) -> Tensor:
    """float64 [D/2]."""
    divided = frequency / scaling.factor
    if scaling.rope_type == "linear":
        return divided
    original = scaling.original_max_position_embeddings
    assert original is not None  # the configuration says so
    if scaling.rope_type == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None
        assert high is not None
        kept = ((original * frequency / (2 * pi) - low) / (high - low)).clamp(0, 1)
        return kept * frequency + (1 - kept) * divided
    slow, fast = scaling.beta_slow or 1.0, scaling.beta_fast or 32.0
    first, last = (_dimension(turns, original, model) for turns in (fast, slow))
    if scaling.truncate is not False:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, model.head_dim - 1)
    number = torch.arange(len(frequency), dtype=torch.float64, device=frequency.device)
    left = ((number - first) / (last - first if last != first else 0.001)).clamp(0, 1)
    return (1 - left) * frequency + left * divided


def _dimension(turns: float, original: int, model: ModelConfig) -> float:
    """The i whose frequency turns so often in the original context."""
    return model.head_dim * log(original / (2 * pi * turns)) / (2 * log(model.rope_theta))
