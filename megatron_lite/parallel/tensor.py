"""Tensor parallelism with and without sequence parallelism, as operations that a block calls in sight of the reader.

A block enters a parallel region (whole sequence, part of the features) and leaves it (Shoeybi et al. 2019, arXiv
1909.08053, section 3; Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2). What happens at the two borders is a
`Region`:

                       enter        leave            backward of enter   backward of leave   input again
    SequenceRegion     all-gather   reduce-scatter   reduce-scatter      all-gather          all-gather
    ReplicatedRegion   -            all-reduce       all-reduce          -                   -

A block enters twice and leaves twice: under sequence parallelism 2 all-gathers and 2 reduce-scatters forward, 4
all-gathers and 2 reduce-scatters backward (the input is saved as this rank's part and gathered again, beside the input
gradient's GEMM).

Activations are [T, B, features]; outside a region T is this rank's part under sequence parallelism. Weights are
`Weight`s: an operation asks for the tensor in forward and again in backward, and adds the weight's gradient itself. Of
a frozen weight there is none: its product's input is not kept, and not gathered again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from megatron_lite.parallel.collectives import Communicator, Handle, ready
from megatron_lite.parallel.products import product, product_with, rows_of
from megatron_lite.parallel.weights import Weight


@dataclass(frozen=True)
class SequenceRegion:
    """Between regions a tensor rank holds a part of the sequence; norms see that alone: their gradients are partial."""

    tensor: Communicator
    partial_outside: bool = True

    def enter(self, x: Tensor, site: str) -> Handle:
        return self.tensor.all_gather(x, site)

    def leave(self, x: Tensor, site: str) -> Handle:
        return self.tensor.reduce_scatter(x, site)

    def enter_backward(self, gradient: Tensor, site: str) -> Handle:
        return self.tensor.reduce_scatter(gradient, site)

    def leave_backward(self, gradient: Tensor, site: str) -> Handle:
        return self.tensor.all_gather(gradient, site)

    def length(self, sequence: int) -> int:
        """Positions that a rank holds outside a region."""
        return sequence // self.tensor.size

    def whole(self, x: Tensor, site: str) -> Handle:
        """All positions, of what each rank has of its own."""
        return self.tensor.all_gather(x, site)

    def own(self, x: Tensor) -> Tensor:
        """This rank's of all positions."""
        return x.chunk(self.tensor.size)[self.tensor.rank]


@dataclass(frozen=True)
class ReplicatedRegion:
    """Between regions every tensor rank holds the same whole activations."""

    tensor: Communicator
    partial_outside: bool = False

    def enter(self, x: Tensor, site: str) -> Handle:
        return ready(x)

    def leave(self, x: Tensor, site: str) -> Handle:
        return self.tensor.all_reduce(x, site)

    def enter_backward(self, gradient: Tensor, site: str) -> Handle:
        return self.tensor.all_reduce(gradient, site)

    def leave_backward(self, gradient: Tensor, site: str) -> Handle:
        return ready(gradient)

    def length(self, sequence: int) -> int:
        return sequence

    def whole(self, x: Tensor, site: str) -> Handle:
        return ready(x)

    def own(self, x: Tensor) -> Tensor:
        return x


Region = SequenceRegion | ReplicatedRegion


def enter_linear(x: Tensor, weight: Weight, region: Region, site: str) -> Tensor:
    """Column-parallel product on entering a region: [T or T/tp, B, K] -> [T, B, rows]."""
    return _EnterLinear.apply(x, weight, region, site)


def inside_linear(x: Tensor, weight: Weight) -> Tensor:
    """Product within a region, of a rank's own features, as an adapter's second one: [T, B, K] -> [T, B, rows]."""
    return _InsideLinear.apply(x, weight)


def linear_leave(x: Tensor, core: Callable[[Tensor], Tensor], weight: Weight, region: Region, site: str) -> Tensor:
    """core(x), then the row-parallel product, leaving the region: [T, B, .] -> [T or T/tp, B, rows].

    `core` is attention or SwiGLU.
    """
    return _LinearLeave.apply(core(x), weight, region, site)


def recomputed_linear_leave(
    x: Tensor, core: Callable[[Tensor], Tensor], weight: Weight, region: Region, site: str
) -> Tensor:
    """The same, but only x is kept for backward, where core runs again; it has no weights."""
    return _RecomputedLinearLeave.apply(x, core, weight, region, site)


def outside_linear(x: Tensor, weight: Weight, region: Region, site: str) -> Tensor:
    """Product with a replicated weight outside regions, of few rows: [T or T/tp, B, K] -> [T, B, rows] in float32
    (float64 for float64), the same on every rank, as is the gradient that comes back.
    """
    return _OutsideLinear.apply(x, weight, region, site)


class _OutsideLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, region, site):
        _keep_input(ctx, x, weight)
        ctx.region, ctx.dtype = region, x.dtype
        exact = torch.promote_types(x.dtype, torch.float32)
        return region.whole(product(x.to(exact), weight.data.to(exact).t()), site).wait()

    @staticmethod
    def backward(ctx, gradient):
        weight, own = ctx.weight, ctx.region.own(gradient).to(ctx.dtype)
        if weight.trained:
            x = _saved(ctx)
            weight.run_or_defer(lambda: weight.add_product(rows_of(own), rows_of(x)))
        return product(own, weight.data), None, None, None


class _EnterLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, region, site):
        full = region.enter(x, site).wait()
        _keep_input(ctx, x, weight)
        ctx.region, ctx.site = region, site
        return product_with(weight, full)

    @staticmethod
    def backward(ctx, gradient):
        weight, region, site = ctx.weight, ctx.region, ctx.site
        if not weight.trained:
            scattered = region.enter_backward(product(gradient, weight.data), f"{site}.backward")
            return scattered.wait(), None, None, None
        x = _saved(ctx)
        gathered = region.enter(x, f"{site}.again") if weight.deferred is None else None
        full_gradient = product(gradient, weight.data)
        scattered = region.enter_backward(full_gradient, f"{site}.backward")

        def weight_gradient():
            full = (gathered or region.enter(x, f"{site}.again")).wait()
            weight.add_product(rows_of(gradient), rows_of(full))

        weight.run_or_defer(weight_gradient)
        return scattered.wait(), None, None, None


class _InsideLinear(Function):
    @staticmethod
    def forward(ctx, x, weight):
        _keep_input(ctx, x, weight)
        return product_with(weight, x)

    @staticmethod
    def backward(ctx, gradient):
        weight = ctx.weight
        if weight.trained:
            x = _saved(ctx)
            weight.run_or_defer(lambda: weight.add_product(rows_of(gradient), rows_of(x)))
        return product(gradient, weight.data), None


class _LinearLeave(Function):
    @staticmethod
    def forward(ctx, x, weight, region, site):
        _keep_input(ctx, x, weight)
        ctx.region, ctx.site = region, site
        return region.leave(product_with(weight, x), site).wait()

    @staticmethod
    def backward(ctx, gradient):
        weight = ctx.weight
        full = ctx.region.leave_backward(gradient, f"{ctx.site}.backward").wait()
        input_gradient = product(full, weight.data)
        if weight.trained:
            x = _saved(ctx)
            weight.run_or_defer(lambda: weight.add_product(rows_of(full), rows_of(x)))
        return input_gradient, None, None, None


class _RecomputedLinearLeave(Function):
    @staticmethod
    def forward(ctx, x, core, weight, region, site):
        ctx.core, ctx.weight, ctx.region, ctx.site = core, weight, region, site
        ctx.save_for_backward(x)
        return region.leave(product_with(weight, core(x)), site).wait()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        weight = ctx.weight
        arriving = ctx.region.leave_backward(gradient, f"{ctx.site}.backward")
        # Recomputing needs no gradient, so it runs while the gradient arrives.
        with torch.enable_grad():
            inside = x.detach().requires_grad_()
            output = ctx.core(inside)
        full = arriving.wait()
        (input_gradient,) = torch.autograd.grad(output, inside, product(full, weight.data))
        if weight.trained:
            kept = output.detach()
            weight.run_or_defer(lambda: weight.add_product(rows_of(full), rows_of(kept)))
        return input_gradient, None, None, None, None


def _keep_input(ctx: Any, x: Tensor, weight: Weight) -> None:
    """For the weight's gradient; a frozen one has none."""
    ctx.weight = weight
    if weight.trained:
        ctx.save_for_backward(x)


def _saved(ctx: Any) -> Tensor:
    """The one tensor saved, without its graph: what a queue keeps it would keep alive, down to the unit's input."""
    (x,) = ctx.saved_tensors
    return x.detach()
