"""A weight as the operations see it: full while it is used, its gradient added up by whoever uses it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.kernels.choice import Kernels
from megatron_lite.parallel.layout import Local


@dataclass(frozen=True)
class Numerics:
    """What a run computes in: dtypes of matrix products and activations, of weights' masters and gradient sums, of
    gradients on the wire; the device; the operations.
    """

    compute: torch.dtype
    master: torch.dtype
    reduce: torch.dtype
    device: torch.device
    kernels: Kernels


class Weight:
    """A local weight as the operations see it: full while its unit is gathered, gone otherwise.

    Operations keep this object, not the tensor, for their backward; so nothing in the autograd graph holds a full
    weight. For one that is not `trained` they work out no gradient, and keep nothing for it.
    """

    def __init__(self, local: Local, numerics: Numerics, trained: bool):
        self.local, self.numerics, self.trained = local, numerics, trained
        self.kernels = numerics.kernels
        self.full: Tensor | None = None
        self.pinned = False  # whether it stays as it is until it is released
        self.reordered: Tensor | None = None  # as a library reads it best, while it is pinned; products.py
        self.gradient: Tensor | None = None  # full, in the master dtype
        self.begun = False  # whether it holds a sum; before, what stands there means nothing
        self.deferred: list[Callable[[], None]] | None = None  # where a split backward puts its weight gradients

    @property
    def data(self) -> Tensor:
        """The full weight, [rows, columns] or [columns]. Raises RuntimeError when it was released."""
        if self.full is None:
            raise RuntimeError(f"weight {self.local.name} was used while released")
        return self.full

    def release(self) -> None:
        self.full = self.reordered = None
        self.pinned = False

    def run_or_defer(self, compute: Callable[[], None]) -> None:
        """Run a weight-gradient computation now, or queue it where the backward is split."""
        if self.deferred is None:
            compute()
        else:
            self.deferred.append(compute)

    def add_product(self, output_gradient: Tensor, x: Tensor) -> None:
        """gradient += output_gradient^T x, [N, rows]^T [N, columns], in the master dtype; the first is written."""
        begun, self.begun = self.begun, True
        self.kernels.add_product_(self._place(), output_gradient, x, float(begun))

    def add_partials(self, partials: Tensor) -> None:
        """gradient [H] += the sum of partials [P, H]."""
        self.kernels.add_partials_(self._sum(), partials)

    def add_rows(self, index: Tensor, rows: Tensor) -> None:
        """gradient[index[i]] += rows[i], in order of i; an index outside the weight is another rank's."""
        self.kernels.embedding_backward_(self._sum(), index, rows)

    def _sum(self) -> Tensor:
        """The full gradient so far, in the master dtype."""
        place = self._place()
        if not self.begun:
            self.begun = True
            place.zero_()
        return place

    def _place(self) -> Tensor:
        """Where the full gradient is, or is to be."""
        if self.gradient is None:
            numerics = self.numerics
            self.gradient = torch.empty(self.local.shape, dtype=numerics.master, device=numerics.device)
        return self.gradient

    def open_gradient(self, place: Tensor | None) -> None:
        """Nothing was added yet; sums go to `place`, or (None) to a buffer of their own."""
        self.gradient, self.begun = place, False

    def take_gradient(self) -> Tensor | None:
        """The sum, which leaves this weight; None where nothing was added."""
        gradient = self.gradient if self.begun else None
        self.open_gradient(None)
        return gradient

    def close_gradient(self) -> None:
        """After a step's last sum: where nothing was added, its place holds zeros."""
        if self.gradient is not None:
            self._sum()


@contextmanager
def deferring(weights: Sequence[Weight], queue: list[Callable[[], None]] | None) -> Iterator[None]:
    """Within, these weights' gradients are queued for a split backward's second half; with None they are computed."""
    for weight in weights:
        weight.deferred = queue
    try:
        yield
    finally:
        for weight in weights:
            weight.deferred = None
