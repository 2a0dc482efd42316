"""Context parallelism: the ranks of the context axis hold different positions of the same sequences.

Only attention sees other ranks' positions. Two ways, each with its own split of S positions over c ranks:

    ring      2 c chunks, rank r holds chunks r and 2 c - 1 - r (zigzag), so that causal work is equal on all ranks;
              keys and values go once round the ring (Liu et al. 2023, arXiv 2310.01889), partial results are merged by
              their log-sum-exp; while one block is worked on, the next is on its way
    ulysses   c chunks in order; an all-to-all gives each rank the whole sequence for a part of the heads, and another
              brings the result back (Jacobs et al. 2023, arXiv 2309.14509, section 3.1); with fewer key-value heads
              than ranks each is given to several, and their gradients add up
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import Function

from megatron_lite.kernels.choice import Kernels
from megatron_lite.kernels.visibility import Visible, visible_in_documents
from megatron_lite.parallel.collectives import Communicator, alone

Kind = Literal["ring", "ulysses"]
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}


@dataclass(frozen=True)
class ContextSplit:
    """How positions lie on the context axis."""

    communicator: Communicator
    kind: Kind

    @property
    def swaps_heads(self) -> bool:
        """Whether attention exchanges positions for heads."""
        return self.kind == "ulysses" and self.communicator.size > 1

    @property
    def attending(self) -> "ContextSplit":
        """As attention is called: with whole sequences, where it exchanged heads for them."""
        me = self.communicator.ranks[self.communicator.rank]
        return ContextSplit(alone(me), self.kind) if self.swaps_heads else self

    def heads(self, queries: int, key_values: int) -> int:
        """Query heads a key-value head has after the exchange: fewer, where one of these goes to several ranks."""
        return queries // max(1, self.communicator.size // key_values) if self.swaps_heads else queries

    def positions(self, length: int, device: torch.device, rank: int | None = None) -> Tensor:
        """The positions int64 [length / c] that a rank holds (None: this one), in the order in which it holds them."""
        rank, size = self.communicator.rank if rank is None else rank, self.communicator.size
        whole = torch.arange(length, device=device)
        if self.kind == "ulysses" or size == 1:
            return whole.view(size, -1)[rank]
        chunks = whole.view(2 * size, -1)
        return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])

    def places(self, length: int, device: torch.device) -> Tensor:
        """Where each position stands among those of all ranks, one rank's after another's: int64 [length]."""
        held = torch.cat([self.positions(length, device, rank) for rank in range(self.communicator.size)])
        return torch.empty_like(held).scatter_(0, held, torch.arange(length, device=device))


def whole_sequences(parts: Tensor, split: ContextSplit, site: str) -> Tensor:
    """Numbers [n, T, B] of this rank's positions -> [n, B, S] of all; backward keeps this rank's own positions."""
    return _WholeSequences.apply(parts, split, site)


class _WholeSequences(Function):
    @staticmethod
    def forward(ctx, parts, split, site):
        length = parts.shape[1] * split.communicator.size
        ctx.positions = split.positions(length, parts.device)
        ranks = split.communicator.all_gather(parts.unsqueeze(0).contiguous(), site).wait()
        together = ranks.permute(1, 3, 0, 2).flatten(2)
        return together[:, :, split.places(length, parts.device)]

    @staticmethod
    def backward(ctx, gradient):
        return gradient[:, :, ctx.positions].transpose(1, 2), None, None


@dataclass(frozen=True)
class Documents:
    """Attention within documents: what queries see of the keys at hand, at each step of the ring.

    The same in every block and in both passes, so it is made once a step: on the device, which the host need not wait
    for (`documents_of`).
    """

    steps: tuple[Visible, ...]

    def split(self, sequences: int) -> list["Documents"]:
        """Of so many sequences each."""
        return [Documents(steps) for steps in zip(*(visible.split(sequences) for visible in self.steps), strict=True)]


def documents_of(numbers: Tensor, split: ContextSplit) -> Documents:
    """From the document of each position, int64 [B, S] over whole sequences, non-decreasing along them."""
    rank, size, length = split.communicator.rank, split.communicator.size, numbers.shape[1]
    mine = split.positions(length, numbers.device)
    steps = []
    for step in range(size):
        queries, keys = _part(step, rank, size, length // size)
        theirs = split.positions(length, numbers.device, (rank - step) % size)
        steps.append(visible_in_documents(numbers, mine[queries], theirs[keys]))
    return Documents(tuple(steps))


@dataclass(frozen=True)
class Attention:
    """What attention takes beside queries, keys and values."""

    split: ContextSplit
    documents: Documents | None
    kernels: Kernels


def attend(packed: Tensor, how: Attention) -> Tensor:
    """Causal attention of this rank's queries to the keys and values of the ring's ranks -> [B, G R, T, D].

    packed [T, B, G, R + 2, D]: for each key-value head its R queries, itself, its value. With one rank, or under
    ulysses (which calls it with whole sequences), there is nobody to ask.
    """
    return _RingAttention.apply(packed, how)


def parts_of(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, B, G, R + 2, D] -> queries [B, G, R, T, D], keys and values [B, G, T, D], all views."""
    q, k, v = (part.permute(1, 2, 3, 0, 4) for part in packed.split([packed.shape[3] - 2, 1, 1], dim=3))
    return q, k.squeeze(2), v.squeeze(2)


class _RingAttention(Function):
    @staticmethod
    def forward(ctx, packed, how):
        q, k, v = parts_of(packed)
        ring = _Ring(how.split, q.shape[-2], how.documents)
        exact = ring.sum_dtype(q.dtype)
        block = (k, v)
        for step in range(ring.size):
            arriving = ring.pass_on(block, "context.ring") if step < ring.size - 1 else None
            queries, keys, causal, visible = ring.part(step)
            its_keys = (x[:, :, keys] for x in block)
            some, its_log_sum = how.kernels.attention(q[..., queries, :], *its_keys, causal, visible)
            if step == 0:
                output, log_sum = some.to(exact), its_log_sum
            else:
                _merge(output[:, :, queries], log_sum[:, :, queries], some, its_log_sum)
            block = arriving.take() if arriving is not None else block
        output = output.to(q.dtype)
        ctx.save_for_backward(packed, output, log_sum)
        ctx.ring, ctx.kernels = ring, how.kernels
        return output

    @staticmethod
    def backward(ctx, gradient):
        packed, output, log_sum = ctx.saved_tensors
        ring, kernels = ctx.ring, ctx.kernels
        if ring.size > 1:
            shares = _ring_backward(gradient, parts_of(packed), output, log_sum, ring, kernels)
            result = torch.empty_like(packed)
            for place, share in zip(parts_of(result), shares, strict=True):
                place.copy_(share)
        else:
            result = torch.empty_like(packed)
            _, _, causal, visible = ring.part(0)
            places = parts_of(result)
            kernels.attention_backward_(gradient, *parts_of(packed), output, log_sum, causal, visible, *places)
        return result, None


def _ring_backward(gradient: Tensor, parts: Sequence[Tensor], output: Tensor, log_sum: Tensor, ring: "_Ring",
                   kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, in the dtype of sums."""
    block: Sequence[Tensor]
    gradients: Sequence[Tensor]
    travelling: _Arriving | None = None  # a block's gradients follow it one step later and gather what each rank adds
    q, *block = parts
    exact = ring.sum_dtype(q.dtype)
    for step in range(ring.size):
        arriving = ring.pass_on(block, "context.ring.again") if step < ring.size - 1 else None
        queries, keys, causal, visible = ring.part(step)
        some = gradient[:, :, queries], q[..., queries, :]
        own = [x[:, :, queries] for x in (output, log_sum)]
        its_keys = (x[:, :, keys] for x in block)
        shares = kernels.attention_backward(*some, *its_keys, *own, causal, visible)
        if travelling is None:
            q_gradient, *gradients = (share.to(exact) for share in shares)
        else:
            q_gradient[..., queries, :] += shares[0]
            gradients = travelling.take()
            for total, share in zip(gradients, shares[1:], strict=True):
                total[:, :, keys] += share
        travelling = ring.pass_on(gradients, "context.ring.gradient")
        block = arriving.take() if arriving is not None else block
    assert travelling is not None  # a ring has a rank
    return q_gradient, *travelling.take()


def _merge(output: Tensor, log_sum: Tensor, some: Tensor, its_log_sum: Tensor) -> None:
    """Add what further keys give to queries' results, in place: outputs weighted by their share of the sum."""
    merged = torch.logaddexp(log_sum, its_log_sum)
    lowest = torch.finfo(merged.dtype).min
    shares = [torch.exp(x - merged.clamp(min=lowest)).unsqueeze(-1) for x in (log_sum, its_log_sum)]
    output.mul_(shares[0]).add_(some * shares[1])
    log_sum.copy_(merged)


class _Arriving:
    """A block under way, its two tensors packed in one message."""

    def __init__(self, handle, shape):
        self.handle, self.shape = handle, shape

    def take(self) -> tuple[Tensor, Tensor]:
        return tuple(self.handle.wait().view(2, *self.shape))


class _Ring:
    """What a rank works on at each step: at step i it holds the block of rank (r - i) mod c."""

    def __init__(self, split: ContextSplit, length: int, documents: Documents | None):
        self.communicator, self.documents = split.communicator, documents
        self.size, self.rank, self.length = self.communicator.size, self.communicator.rank, length

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What partial results are added in; of one rank's there is nothing to add."""
        return torch.promote_types(dtype, torch.float32) if self.size > 1 else dtype

    def pass_on(self, block: Sequence[Tensor], site: str) -> _Arriving:
        """Give the block to the next rank while the one of the rank before comes in."""
        packed = torch.stack(tuple(block))
        handle = self.communicator.exchange(packed, (self.rank + 1) % self.size, (self.rank - 1) % self.size, site)
        return _Arriving(handle, block[0].shape)

    def part(self, step: int) -> tuple[slice, slice, bool, Visible | None]:
        """(queries, keys, causal, visible) of a step."""
        queries, keys = _part(step, self.rank, self.size, self.length)
        if self.documents is None:
            return queries, keys, step == 0, None
        return queries, keys, False, self.documents.steps[step]


def _part(step: int, rank: int, size: int, length: int) -> tuple[slice, slice]:
    """(queries, keys) of a step, of `length` each: with the rank's own block all, of which causal leaves the lower
    triangle; of an earlier rank's its first chunk for all queries; of a later rank's all of it for the second chunk of
    queries.
    """
    owner, everything, half = (rank - step) % size, slice(0, length), length // 2
    if owner == rank:
        return everything, everything
    if owner < rank:
        return everything, slice(0, half)
    return slice(half, length), everything


def exchange_heads(qkv: Tensor, head_dim: int, queries: int, split: ContextSplit) -> Tensor:
    """Packed [T, B, G (R + 2) D] of this rank's positions -> the same of all c T positions for its share of the groups.

    With G below c each group goes to c / G ranks, with R G / c of its query heads each; their gradients are summed.
    """
    size, width = split.communicator.size, queries + 2
    groups = qkv.shape[-1] // (width * head_dim)
    if groups < size:
        copies = size // groups
        grouped = qkv.view(*qkv.shape[:2], groups, width, head_dim)
        q, kv = grouped.split([queries, 2], dim=3)
        q = q.unflatten(3, (copies, queries // copies))
        kv = kv.unsqueeze(3).expand(-1, -1, -1, copies, -1, -1)
        qkv = torch.cat([q, kv], dim=4).flatten(2)
    return _Move.apply(qkv, _scatter_groups, _gather_groups, split.communicator, "context.heads")


def return_heads(output: Tensor, split: ContextSplit) -> Tensor:
    """[c T, B, heads D] of this rank's heads -> [T, B, all heads D] of its positions."""
    return _Move.apply(output, _gather_groups, _scatter_groups, split.communicator, "context.heads.return")


class _Move(Function):
    """`there` forward, and what undoes it, `back`, for the gradient."""

    @staticmethod
    def forward(ctx, x, there, back, communicator, site):
        ctx.back, ctx.communicator, ctx.site = back, communicator, site
        return there(x, communicator, site)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.back(gradient, ctx.communicator, f"{ctx.site}.backward"), None, None, None, None


def _scatter_groups(x: Tensor, communicator: Communicator, site: str) -> Tensor:
    """[T, B, c N] -> [c T, B, N]."""
    length, batch, width = x.shape
    parts = x.view(length, batch, communicator.size, -1).permute(2, 0, 1, 3)
    return communicator.all_to_all(parts, site).wait().view(-1, batch, width // communicator.size)


def _gather_groups(x: Tensor, communicator: Communicator, site: str) -> Tensor:
    """[c T, B, N] -> [T, B, c N]."""
    length, batch, width = x.shape
    parts = communicator.all_to_all(x.view(communicator.size, -1, batch, width), site).wait()
    return parts.permute(1, 2, 0, 3).reshape(length // communicator.size, batch, -1)
