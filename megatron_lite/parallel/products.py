"""Products of activations with a weight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.parallel.weights import Weight

Diagonal = Callable[[Tensor], Tensor]
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


@dataclass(frozen=True)
class Linear:
    """x [T, B, K] -> scale * d(x) W^T [T, B, N], where d scales each element of x by a number of its own, such as
    dropout's (None: by 1).

    narrow  W has so few rows or columns that its gradient is worked out at once also where a backward is split: to put
            it off would keep far more than it saves
    """

    weight: Weight
    scale: float = 1.0
    diagonal: Diagonal | None = None
    narrow: bool = False

    def of(self, x: Tensor) -> Tensor:
        return self._scaled(product_with(self.weight, self._scaled_each(x)))

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return self._scaled_each(product(self._scaled(gradient), self.weight.data))

    def add_input_gradient_(self, total: Tensor, gradient: Tensor) -> None:
        """total, which is contiguous, += the input's gradient."""
        if self.diagonal is None:
            total.view(-1, total.shape[-1]).addmm_(rows_of(self._scaled(gradient)), self.weight.data)
        else:
            total.add_(self.input_gradient(gradient))

    def add_gradient(self, gradient: Tensor, x: Tensor) -> None:
        """The weight's, now or where the backward is split later; of a frozen one there is none."""

        def compute() -> None:
            self.weight.add_product(rows_of(self._scaled(gradient)), rows_of(self._scaled_each(x)))

        if self.weight.trained and self.narrow:
            compute()
        elif self.weight.trained:
            self.weight.run_or_defer(compute)

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.scale == 1 else y * self.scale

    def _scaled_each(self, x: Tensor) -> Tensor:
        return x if self.diagonal is None else self.diagonal(x)
