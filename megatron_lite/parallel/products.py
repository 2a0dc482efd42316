"""Products of activations with a weight."""

import torch
from torch import Tensor

from megatron_lite.parallel.weights import Weight

ROWS = 64  # for which a reordered weight is laid out; it serves any number


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [T, B, K] times [K, N] as one matrix product; `@` would sometimes make a batch of it."""
    result = x.new_empty((*x.shape[:-1], matrix.shape[1]))
    torch.mm(rows_of(x), matrix, out=result.view(-1, matrix.shape[1]))
    return result


def product_with(weight: Weight, x: Tensor) -> Tensor:
    """x [T, B, K] times the weight [N, K] transposed.

    A weight that stays is reordered at its first product, where a CPU computes in float32: MKL's product of few rows
    spends most of its time on turning the weight into the form that it reads
    (tools/benchmark/reordered_weights.py), and oneDNN takes it in that form from the beginning, at the price of a
    second copy.
    """
    if weight.reordered is None:
        if not (weight.pinned and _reorders(weight.data)):
            return product(x, weight.data.t())
        weight.reordered = torch.ops.mkldnn._reorder_linear_weight(weight.data, ROWS)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.reordered, None, "none", [], "")


def _reorders(data: Tensor) -> bool:
    return data.device.type == "cpu" and data.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def rows_of(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
