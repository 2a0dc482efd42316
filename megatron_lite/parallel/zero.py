"""ZeRO: a unit's weights live as first-dimension shards; full weights and gradients exist only while they are used.

One mechanism serves every stage (Rajbhandari et al. 2020, arXiv 1910.02054, section 5). A stage is how long it holds:

    zero_stage  zero_regather  master, moments   full weights live for   full gradients live for
    0           -              replicated        the step                the step, then all-reduced
    1           -              sharded           the step                the step
    2           microbatch     sharded           the step                one unit's backward
    2           step           sharded           the step                the step
    3           microbatch     sharded           one unit's pass         one unit's backward
    3           step           sharded           the step                the step

Stage 0 is a sharding group of one rank, replicated over the others. Optimizer state exists as flat shards only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_lite.kernels.choice import Kernels
from megatron_lite.parallel.collectives import Communicator, Handle, alone
from megatron_lite.parallel.layout import Local, ShardLayout

Lifetime = Literal["microbatch", "step"]


@dataclass(frozen=True)
class Policy:
    """What is sharded, and how long full weights and full gradients live."""

    sharded: bool
    weights: Lifetime
    gradients: Lifetime


def policy(zero_stage: int, zero_regather: Lifetime) -> Policy:
    """The table above. Raises ValueError for what it has not, such as an undecided auto."""
    if zero_regather not in get_args(Lifetime):
        raise ValueError(f"zero_regather = {zero_regather}: must be one of {', '.join(get_args(Lifetime))} by now")
    return Policy(
        sharded=zero_stage >= 1,
        weights=zero_regather if zero_stage == 3 else "step",
        gradients=zero_regather if zero_stage >= 2 else "step",
    )


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
    weight.
    """

    def __init__(self, local: Local, numerics: Numerics):
        self.local, self.numerics = local, numerics
        self.kernels = numerics.kernels
        self.full: Tensor | None = None
        self.gradient: Tensor | None = None  # full, in the master dtype
        self.begun = False  # whether it holds a sum; before, what stands there means nothing
        self.deferred: list[Callable[[], None]] | None = None  # where a split backward puts its weight gradients

    @property
    def data(self) -> Tensor:
        """The full weight, [rows, columns] or [columns]. Raises RuntimeError when it was released."""
        if self.full is None:
            raise RuntimeError(f"weight {self.local.name} was used while released")
        return self.full

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


class Shards:
    """The weights that one unit gathers at once, as this rank's flat shard, and the machinery of full and back.

    master, gradient [S] in the master dtype; `compute` [S] what is gathered, the master itself where the dtypes agree.
    """

    def __init__(self, name: str, layout: ShardLayout, sharding: Communicator, replicas: Communicator,
                 numerics: Numerics):  # fmt: skip
        self.name, self.layout, self.numerics = name, layout, numerics
        self.sharding, self.replicas = sharding, replicas
        self.master = torch.zeros(layout.size, dtype=numerics.master, device=numerics.device)
        self.gradient = torch.zeros_like(self.master)
        self.compute = self.master if numerics.compute == numerics.master else self.master.to(numerics.compute)
        self.weights = [Weight(local, numerics) for local in layout.locals]
        self._gathering: Handle | None = None
        self._reducing: Handle | None = None

    @property
    def held(self) -> bool:
        """Whether full weights are here or on their way."""
        return self._gathering is not None or self.weights[0].full is not None

    @property
    def arriving(self) -> list[Tensor]:
        """Buffers of a gather under way."""
        return [] if self._gathering is None else self._gathering.buffers

    @property
    def leaving(self) -> list[Tensor]:
        """Buffers of a reduction under way."""
        return [] if self._reducing is None else self._reducing.buffers

    def owned_here(self, local: Local, tensor: Communicator) -> bool:
        """Whether this rank is the one that counts (and saves) its part of a weight.

        Of a weight's replicas over the tensor axis, over the zero axis at stage 0 and over tied stages, the first does.
        """
        first_of_tensor = not local.replicated or tensor.rank == 0
        return local.owner and first_of_tensor and self.replicas.rank == 0

    def refresh(self) -> None:
        """After the masters changed: renew what is gathered."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)

    # Full weights

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
            rows = shards[:, begin:end].reshape(-1, *local.shape[1:])
            weight.full = rows[: local.shape[0]]
        self._gathering = None

    def release(self) -> None:
        """Let go of the full weights. On a GPU their memory is given out again in the compute stream's order: after
        every product queued on it so far, and a later gather into it waits for that stream before it begins.
        """
        for weight in self.weights:
            weight.full = None

    # Full gradients

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
        for weight, (local, begin, end) in zip(self.weights, self.layout.ranges(), strict=True):
            gradient = weight.take_gradient()
            if gradient is None:
                packed[:, begin:end].zero_()
                continue
            rows = self.layout.rows(local)
            full = local.shape[0] // rows  # ranks whose rows all exist; the next has what is left, the others none
            packed[:full, begin:end].copy_(gradient[: full * rows].reshape(full, end - begin))
            packed[full:, begin:end].zero_()
            rest = gradient[full * rows :].flatten()
            if rest.numel():
                packed[full, begin : begin + rest.numel()].copy_(rest)
        packed[:, self.layout.offsets[-1] :].zero_()
        return packed


@dataclass(frozen=True)
class ShardGroups:
    """The zero axis as a whole, and cut into groups that each hold all shards (`sharding`), replicas of each other.

    Hierarchical sharding (`zero_group`): gathers stay within a group, as a node's ranks, and what crosses groups is one
    all-reduce of each shard's gradient a step (as in Zhao et al. 2023, arXiv 2304.11277, section 3.2.2).
    """

    zero: Communicator
    sharding: Communicator
    replicas: Communicator


def build_shards(name: str, locals_: Sequence[Local], groups: ShardGroups, rule: Policy,
                 numerics: Numerics) -> Shards:  # fmt: skip
    """Shard a unit's weights over its sharding group, or replicate them over the whole zero axis."""
    sharding, replicas = groups.sharding, groups.replicas
    if not rule.sharded:
        sharding, replicas = alone(groups.zero.ranks[groups.zero.rank]), groups.zero
    return Shards(name, ShardLayout(tuple(locals_), sharding.size), sharding, replicas, numerics)


@dataclass(frozen=True)
class Use:
    """One unit's turn in a step: the shards whose weights it needs, and those it leaves gradients for."""

    needs: tuple[Shards, ...]
    leaves: tuple[Shards, ...]


@dataclass(frozen=True)
class Turn:
    """What to do around one use: wait for weights, start the next ones, run, release, start reducing."""

    wait: tuple[Shards, ...]
    prefetch: tuple[Shards, ...]
    release: tuple[Shards, ...]
    reduce: tuple[Shards, ...]


def plan_turns(uses: Sequence[Use], rule: Policy) -> tuple[Turn, ...]:
    """Turn a step's uses, in order, into gathers, releases and reductions: known before the step begins.

    Weights are gathered one use ahead, and stay where the next use needs them too.
    """
    turns: list[Turn] = []
    following: tuple[Shards, ...] = ()  # what the next use that needs weights needs
    needed_later: set[int] = set()
    left_later: set[int] = set()
    for use in reversed(uses):
        kept = {id(s) for s in following} if rule.weights == "microbatch" else needed_later
        summed = left_later if rule.gradients == "step" else set()
        turns.append(
            Turn(
                wait=use.needs,
                prefetch=following,
                release=tuple(s for s in use.needs if id(s) not in kept),
                reduce=tuple(s for s in use.leaves if id(s) not in summed),
            )
        )
        following = use.needs or following
        needed_later |= {id(s) for s in use.needs}
        left_later |= {id(s) for s in use.leaves}
    return tuple(reversed(turns))


class Walk:
    """Carries out the turns of one step. At most one reduction is in flight."""

    def __init__(self, turns: Sequence[Turn]):
        self.turns = turns
        self.position = 0
        self._reducing: list[Shards] = []

    def enter(self) -> None:
        """Before a unit runs."""
        turn = self.turns[self.position]
        for shards in turn.wait:
            shards.wait_gather()
        for shards in turn.prefetch:
            if not shards.held:
                shards.start_gather()

    def leave(self) -> None:
        """After it ran."""
        turn = self.turns[self.position]
        self.position += 1
        for shards in turn.release:
            shards.release()
        for shards in turn.reduce:
            self._finish()
            shards.start_reduce()
            self._reducing.append(shards)

    def finish(self) -> None:
        """After the last turn: nothing stays in flight."""
        if self.position != len(self.turns):
            raise RuntimeError(f"the step ended after {self.position} of {len(self.turns)} turns")
        self._finish()

    def _finish(self) -> None:
        for shards in self._reducing:
            shards.finish_reduce()
        self._reducing.clear()
