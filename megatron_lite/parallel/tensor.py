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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from megatron_lite.parallel.collectives import Communicator, Handle, ready
from megatron_lite.parallel.products import Linear, product, product_with, rows_of
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
Core = Callable[[Tensor], Tensor]
Places = Callable[[Tensor], Sequence[Tensor]]  # views of a tensor, one for each weight


def enter_linear(x: Tensor, weight: Weight, region: Region, site: str) -> Tensor:
    """Column-parallel product on entering a region: [T or T/tp, B, K] -> [T, B, rows]."""
    return _EnterLinear.apply(x, weight, region, site)


def enter(x: Tensor, region: Region, site: str) -> Tensor:
    """What a rank has of [T or T/tp, B, K], on entering a region: [T, B, K]."""
    return _Enter.apply(x, region, site)


def local_linear(x: Tensor, products: Sequence[Linear]) -> Tensor:
    """Products of what a rank has, side by side, with weights of as many rows each: [.., K] -> [.., sum of rows]."""
    return _LocalLinear.apply(x, products)


def add_linear(whole: Tensor, x: Tensor, weights: Sequence[Weight], places: Places) -> Tensor:
    """whole + x_i W_i^T at the i-th of `places`, in place: x [.., n K] has a part x_i [.., K], few columns, for each
    weight.
    """
    return _AddLinear.apply(whole, x, weights, places)


def linear_leave(
    x: Tensor, core: Core, products: Sequence[Linear], region: Region, sites: Sequence[str]
) -> tuple[Tensor, ...]:
    """Row-parallel products of core(x), each of which leaves the region under its site's name: [T, B, .] -> [T or
    T/tp, B, rows] each.

    `core` is attention or SwiGLU.
    """
    return _LinearLeave.apply(core(x), products, region, sites)


def recomputed_linear_leave(
    x: Tensor, core: Core, products: Sequence[Linear], region: Region, sites: Sequence[str]
) -> tuple[Tensor, ...]:
    """The same, but only x is kept for backward, where core runs again; it has no weights."""
    return _RecomputedLinearLeave.apply(x, core, products, region, sites)


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


class _Enter(Function):
    @staticmethod
    def forward(ctx, x, region, site):
        ctx.region, ctx.site = region, site
        return region.enter(x, site).wait()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.region.enter_backward(gradient, f"{ctx.site}.backward").wait(), None, None


class _LocalLinear(Function):
    @staticmethod
    def forward(ctx, x, products):
        ctx.products = products
        _keep_for(ctx, x, products)
        return _side_by_side([one.of(x) for one in products])

    @staticmethod
    def backward(ctx, gradient):
        gradients = gradient.chunk(len(ctx.products), -1)
        _weight_gradients(ctx.products, gradients, _kept(ctx))
        return _input_gradient(ctx.products, gradients), None


class _AddLinear(Function):
    @staticmethod
    def forward(ctx, whole, x, weights, places):
        for weight, part, place in zip(weights, x.chunk(len(weights), -1), places(whole), strict=True):
            place.add_(product_with(weight, part).view(place.shape))
        ctx.weights, ctx.places = weights, places
        ctx.save_for_backward(x)
        ctx.mark_dirty(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient):
        x, found = _saved(ctx), []
        parts = x.chunk(len(ctx.weights), -1)
        for weight, part, place in zip(ctx.weights, parts, ctx.places(gradient), strict=True):
            one, its_gradient = Linear(weight, narrow=True), place.reshape(*x.shape[:-1], -1)
            one.add_gradient(its_gradient, part)
            found.append(one.input_gradient(its_gradient))
        return gradient, _side_by_side(found), None, None


class _LinearLeave(Function):
    @staticmethod
    def forward(ctx, x, products, region, sites):
        ctx.products, ctx.region, ctx.sites = products, region, sites
        _keep_for(ctx, x, products)
        return _leave_together(x, products, region, sites)

    @staticmethod
    def backward(ctx, *gradients):
        full = [handle.wait() for handle in _arriving(ctx, gradients)]
        input_gradient = _input_gradient(ctx.products, full)
        _weight_gradients(ctx.products, full, _kept(ctx))
        return input_gradient, None, None, None


class _RecomputedLinearLeave(Function):
    @staticmethod
    def forward(ctx, x, core, products, region, sites):
        ctx.core, ctx.products, ctx.region, ctx.sites = core, products, region, sites
        ctx.save_for_backward(x)
        return _leave_together(core(x), products, region, sites)

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        arriving = _arriving(ctx, gradients)
        # Recomputing needs no gradient, so it runs while the gradient arrives.
        with torch.enable_grad():
            inside = x.detach().requires_grad_()
            output = ctx.core(inside)
        full = [handle.wait() for handle in arriving]
        (input_gradient,) = torch.autograd.grad(output, inside, _input_gradient(ctx.products, full))
        _weight_gradients(ctx.products, full, output.detach())
        return input_gradient, None, None, None, None


def _leave_together(x: Tensor, products: Sequence[Linear], region: Region, sites: Sequence[str]) -> tuple[Tensor, ...]:
    leaving = [region.leave(one.of(x), site) for one, site in zip(products, sites, strict=True)]
    return tuple(handle.wait() for handle in leaving)


def _arriving(ctx: Any, gradients: Sequence[Tensor]) -> list[Handle]:
    return [
        ctx.region.leave_backward(gradient, f"{site}.backward")
        for gradient, site in zip(gradients, ctx.sites, strict=True)
    ]


def _input_gradient(products: Sequence[Linear], gradients: Sequence[Tensor]) -> Tensor:
    """Of what all products share."""
    total = products[0].input_gradient(gradients[0])
    for one, gradient in zip(products[1:], gradients[1:], strict=True):
        one.add_input_gradient_(total, gradient)
    return total


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(parts), -1) if len(parts) > 1 else parts[0]


def _weight_gradients(products: Sequence[Linear], gradients: Sequence[Tensor], x: Tensor | None) -> None:
    """x is there where a weight is trained."""
    if x is not None:
        for one, gradient in zip(products, gradients, strict=True):
            one.add_gradient(gradient, x)


def _keep_for(ctx: Any, x: Tensor, products: Sequence[Linear]) -> None:
    if any(one.weight.trained for one in products):
        ctx.save_for_backward(x)


def _kept(ctx: Any) -> Tensor | None:
    return _saved(ctx) if ctx.saved_tensors else None


def _keep_input(ctx: Any, x: Tensor, weight: Weight) -> None:
    """For the weight's gradient; a frozen one has none."""
    ctx.weight = weight
    if weight.trained:
        ctx.save_for_backward(x)


def _saved(ctx: Any) -> Tensor:
    """The one tensor saved, without its graph: what a queue keeps it would keep alive, down to the unit's input."""
    (x,) = ctx.saved_tensors
    return x.detach()
