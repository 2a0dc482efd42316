"""ZeRO: a unit's weights live as first-dimension shards; full weights and gradients exist only while they are used.

One mechanism serves every stage (Rajbhandari et al. 2020, arXiv 1910.02054, section 5). A stage is how long it holds:

    zero_stage  zero_regather  master, moments   full weights live for   full gradients live for
    0           -              replicated        the step                the step, then all-reduced
    1           -              sharded           the step                the step
    2           microbatch     sharded           the step                one unit's backward
    2           step           sharded           the step                the step
    3           microbatch     sharded           one unit's pass         one unit's backward
    3           step           sharded           the step                the step

Stage 0 is a sharding group of one rank, replicated over the others (mesh.py makes the groups). Optimizer state exists
as flat shards only.
Frozen weights have none, and no gradients: they are their compute copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from megatron_lite.parallel.collectives import Communicator, Handle
from megatron_lite.parallel.layout import Local, ShardLayout
from megatron_lite.parallel.weights import Numerics, Weight

Lifetime = Literal["microbatch", "step"]


@dataclass(frozen=True)
class Policy:
    """How long full weights and full gradients live."""

    weights: Lifetime
    gradients: Lifetime


def policy_of(zero_stage: int, zero_regather: Lifetime) -> Policy:
    """The table above. Raises ValueError for what it has not, such as an undecided auto."""
    if zero_regather not in get_args(Lifetime):
        raise ValueError(f"zero_regather = {zero_regather}: must be one of {', '.join(get_args(Lifetime))} by now")
    return Policy(
        weights=zero_regather if zero_stage == 3 else "step",
        gradients=zero_regather if zero_stage >= 2 else "step",
    )


class Shards:
    """Frozen weights that one unit gathers at once, as this rank's flat shard, and how they become full and back.

    compute [S] in the compute dtype: what is gathered.
    """

    trained: ClassVar[bool] = False

    def __init__(self, name: str, layout: ShardLayout, sharding: Communicator, replicas: Communicator,
                 numerics: Numerics):  # fmt: skip
        self.name, self.layout, self.numerics = name, layout, numerics
        self.sharding, self.replicas = sharding, replicas
        self.compute = torch.zeros(layout.size, dtype=numerics.compute, device=numerics.device)
        self.weights = [Weight(local, numerics, self.trained) for local in layout.locals]
        self.pinned = False  # full weights stay until `unpin`, whatever the policy
        self._gathering: Handle | None = None

    @property
    def values(self) -> Tensor:
        """[S]: what weights are loaded into and saved from."""
        return self.compute

    @property
    def held(self) -> bool:
        """Whether full weights are here or on their way."""
        return self._gathering is not None or self.weights[0].full is not None

    @property
    def arriving(self) -> list[Tensor]:
        """Buffers of a gather under way."""
        return [] if self._gathering is None else self._gathering.buffers

    def owned_here(self, local: Local, tensor: Communicator) -> bool:
        """Whether this rank is the one that counts (and saves) its part of a weight.

        Of a weight's replicas over the tensor axis, over the zero axis at stage 0 and over tied stages, the first does.
        """
        first_of_tensor = not local.replicated or tensor.rank == 0
        return local.owner and first_of_tensor and self.replicas.rank == 0

    def refresh(self) -> None:
        """After `values` changed: renew what is gathered. Raises RuntimeError while full weights are pinned."""
        if self.pinned:
            raise RuntimeError(f"weights of {self.name} changed while they are held")

    def start_gather(self) -> None:
        self._gathering = self._gather()

    def _gather(self) -> Handle:
        return self.sharding.all_gather(self.compute, "zero.gather")

    def wait_gather(self) -> None:
        """Make `weight.data` valid: wait, and copy each weight's rows together."""
        if self.weights[0].full is not None:
            return
        gathering = self._gather() if self._gathering is None else self._gathering
        shards = gathering.wait().view(self.sharding.size, self.layout.size)
        for weight, (local, begin, end) in zip(self.weights, self.layout.ranges(), strict=True):
            weight.full = shards[:, begin:end].flatten()[: prod(local.shape)].view(local.shape)
        self._gathering = None

    def release(self) -> None:
        """Let go of the full weights, unless they are pinned. On a GPU their memory is given out again in the compute
        stream's order: after every product queued on it so far, and a later gather into it waits for that stream
        before it begins.
        """
        if self.pinned:
            return
        for weight in self.weights:
            weight.release()

    def pin(self) -> None:
        """Full weights, which are here, stay, and do not change meanwhile."""
        self.pinned = True
        for weight in self.weights:
            weight.pinned = True

    def unpin(self) -> None:
        self.pinned = False
        self.release()


class TrainedShards(Shards):
    """Weights that are trained: master, gradient [S] in the master dtype; `compute` is the master itself where the
    dtypes agree.
    """

    trained: ClassVar[bool] = True

    def __init__(self, name: str, layout: ShardLayout, sharding: Communicator, replicas: Communicator,
                 numerics: Numerics):  # fmt: skip
        super().__init__(name, layout, sharding, replicas, numerics)
        mixed = numerics.compute != numerics.master
        self.master = self.compute.to(numerics.master) if mixed else self.compute
        self.gradient = torch.zeros_like(self.master)
        self._reducing: Handle | None = None

    @property
    def values(self) -> Tensor:
        return self.master

    @property
    def leaving(self) -> list[Tensor]:
        """Buffers of a reduction under way."""
        return [] if self._reducing is None else self._reducing.buffers

    def refresh(self) -> None:
        super().refresh()
        if self.compute is not self.master:
            self.compute.copy_(self.master)

    def open_gradients(self) -> None:
        """Begin a step's sums. Without other ranks, operations add straight into the shard's."""
        if self.sharding.size > 1:
            self.gradient.zero_()
        for weight, (local, begin, end) in zip(self.weights, self.layout.ranges(), strict=True):
            weight.open_gradient(self.gradient[begin:end].view(local.shape) if self.sharding.size == 1 else None)

    def start_reduce(self) -> None:
        """Send off the full gradients gathered so far; their sum reaches the shard in `finish_reduce`."""
        self.finish_reduce()
        if self.sharding.size == 1:
            return
        self._reducing = self.sharding.reduce_scatter(self._packed_gradients().view(-1), "zero.reduce")

    def finish_reduce(self) -> None:
        if self._reducing is not None:
            self.gradient.add_(self._reducing.wait())
            self._reducing = None

    def start_replicate(self) -> Handle:
        """Sum the finished shard over the ranks that hold a replica of it."""
        for weight in self.weights:
            weight.close_gradient()
        return self.replicas.all_reduce(self.gradient, "zero.replicate")

    def _packed_gradients(self) -> Tensor:
        """[ranks, S]: row r is what goes to rank r; takes the full gradients and frees them."""
        packed = torch.empty(
            (self.sharding.size, self.layout.size), dtype=self.numerics.reduce, device=self.master.device
        )
        for weight, (_, begin, end) in zip(self.weights, self.layout.ranges(), strict=True):
            gradient = weight.take_gradient()
            if gradient is None:
                packed[:, begin:end].zero_()
                continue
            flat, size = gradient.flatten(), end - begin
            full = len(flat) // size  # ranks whose elements all exist; the next has what is left, the others none
            packed[:full, begin:end].copy_(flat[: full * size].view(full, size))
            packed[full:, begin:end].zero_()
            rest = flat[full * size :]
            if rest.numel():
                packed[full, begin : begin + rest.numel()].copy_(rest)
        packed[:, self.layout.offsets[-1] :].zero_()
        return packed


def weights_by_name(shards: Sequence[Shards]) -> dict[str, Weight]:
    """A unit's weights, whichever of its shards they lie in."""
    return {weight.local.name: weight for one in shards for weight in one.weights}
