"""A block's products with low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685, equation 3):

    y = W x + alpha / r * B A dropout(x)

    adapted              A [r, in]                     between A and B [.., r]                B [out, r]
    q, k, v, gate, up    whole, on own positions       all of a product enter a region        this rank's rows, inside
    o, down              this rank's columns, inside   partial sums leave the region          whole, on own positions

So what adapters send is r / H of what a block does. A product without adapters is that of W alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_lite.config import LoraConfig, Recompute
from megatron_lite.model.noise import Dropout
from megatron_lite.parallel.products import Linear
from megatron_lite.parallel.tensor import (
    Core,
    Region,
    add_linear,
    enter,
    enter_linear,
    linear_leave,
    local_linear,
    recomputed_linear_leave,
)
from megatron_lite.parallel.weights import Weight


@dataclass(frozen=True)
class Adapter:
    """Of one logical weight."""

    a: Weight
    b: Weight
    lora: LoraConfig

    def narrowing(self, keys: Tensor | None) -> Linear:
        """alpha / r * A dropout(x). keys: int64 [T, B] of x's positions (None: without dropout)."""
        dropout = None
        if keys is not None and self.lora.dropout:
            (packed,) = self.a.local.packs
            dropout = Dropout(keys, self.lora.dropout, packed.logical.name, packed.start[1])
        return Linear(self.a, self.lora.scale, dropout, narrow=True)


def adapters_of(weights: Mapping[str, Weight], lora: LoraConfig | None) -> dict[str, Adapter]:
    """By target, of a block's weights by name."""
    targets = () if lora is None else lora.targets
    return {name: Adapter(weights[f"{name}.lora_A"], weights[f"{name}.lora_B"], lora) for name in targets if lora}


class Entering:
    """A product on entering a region, of several logical weights in one; `parts` gives their places in its result."""

    def __init__(self, weight: Weight, adapters: Sequence[Adapter | None],
                 parts: Callable[[Tensor], Sequence[Tensor]]):  # fmt: skip
        self.weight, self.parts = weight, parts
        self.adapters = {number: adapter for number, adapter in enumerate(adapters) if adapter is not None}

    def __call__(self, h: Tensor, region: Region, site: str, keys: Tensor | None) -> Tensor:
        """[T or T/tp, B, H] -> [T, B, rows]. keys: int64 [T, B], by which dropout is drawn (None: there is none)."""
        whole = enter_linear(h, self.weight, region, site)
        if not self.adapters:
            return whole
        own = None if keys is None else region.own(keys)
        narrow = local_linear(h, [adapter.narrowing(own) for adapter in self.adapters.values()])
        narrow = enter(narrow, region, f"{site}.narrow")
        return add_linear(whole, narrow, [adapter.b for adapter in self.adapters.values()], self._places)

    def _places(self, whole: Tensor) -> list[Tensor]:
        parts = self.parts(whole)
        return [parts[number] for number in self.adapters]


class Leaving:
    """A product on leaving a region, of what a core (attention or SwiGLU) makes inside."""

    def __init__(self, weight: Weight, adapter: Adapter | None, recompute: Recompute):
        self.weight, self.adapter = weight, adapter
        self.leave = recomputed_linear_leave if recompute == "selective" else linear_leave

    def __call__(self, x: Tensor, core: Core, region: Region, site: str, keys: Tensor | None) -> Tensor:
        """[T, B, .] -> [T or T/tp, B, rows]. keys: as `Entering` has them."""
        if self.adapter is None:
            (y,) = self.leave(x, core, [Linear(self.weight)], region, [site])
            return y
        products = [Linear(self.weight), self.adapter.narrowing(keys)]
        y, narrow = self.leave(x, core, products, region, [site, f"{site}.narrow"])
        return y.add_(local_linear(narrow, [Linear(self.adapter.b, narrow=True)]))
