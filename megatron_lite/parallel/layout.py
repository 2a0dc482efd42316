"""Who owns which part of which parameter. Integers only: nothing here sends, and nothing allocates.

Three views of a weight:

    logical   what a user and Hugging Face know: `model.layers.0.self_attn.q_proj.weight`, [heads * head_dim, hidden]
    local     what one tensor rank multiplies by; may pack several logical parameters (QKV, gate and up)
    shard     rows [r * n, (r + 1) * n) of the local weight, on rank r of the sharding group; pieces of rows, where
              there are fewer rows than ranks

Initialization, ZeRO, the gradient norm, checkpoints and exchange are written against the `Box`es that tie the views.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from megatron_lite.config.rounding import aligned


@dataclass(frozen=True)
class Logical:
    """A parameter of the model, on no layout in particular."""

    name: str
    shape: tuple[int, ...]
    deviation: float | None  # of the initial normal distribution; None: all ones
    weight_decay: bool


@dataclass(frozen=True)
class Packed:
    """Rows [row, row + rows) of a local weight hold a block of a logical parameter that begins at `start`."""

    logical: Logical
    row: int
    rows: int
    start: tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """A weight as one tensor rank holds it. Rows that nothing is packed into are padding: zero, and never trained."""

    name: str
    shape: tuple[int, ...]
    packs: tuple[Packed, ...]
    replicated: bool = False  # the same on every tensor rank
    inside: bool = False  # of a replicated one: used within regions, where a rank's gradient is of its own features
    owner: bool = True  # False: a copy, tied to the weight of another stage, which counts in the norm and is saved

    @property
    def weight_decay(self) -> bool:
        return self.packs[0].logical.weight_decay

    @property
    def row_size(self) -> int:
        return prod(self.shape[1:])


@dataclass(frozen=True)
class Box:
    """A contiguous range of a flat shard that is one block of a logical parameter."""

    logical: Logical
    start: tuple[int, ...]  # where the block begins in the logical parameter
    shape: tuple[int, ...]
    offset: int  # first element in the flat shard

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))


@dataclass(frozen=True)
class ShardLayout:
    """A unit's weights cut along their first dimension into `ranks` equal shards, laid one after the other in a flat
    buffer.

        shard r = [ rows r of weight 0 | rows r of weight 1 | ... | tail ]      rows(w) = ceil(first dimension / ranks)

    Of a weight with fewer rows than ranks, such as an adapter's, each row is `pieces` of them. The tail fills a shard
    up to a multiple of 16 elements, so that every rank's begins at an aligned place of the gathered buffer and kernels
    see an aligned size; it is zero and belongs to no weight. Weights with decay come first, so that a flat shard is two
    ranges: decayed, and not.
    """

    locals: tuple[Local, ...]
    ranks: int

    def __post_init__(self) -> None:
        decays = [local.weight_decay for local in self.locals]
        if decays != sorted(decays, reverse=True):
            raise ValueError("weights with decay must come before those without")

    def pieces(self, local: Local) -> int:
        """Into how many equal pieces each row is cut: as few as give every rank one, if there are as many elements."""
        rows, columns = local.shape[0], local.row_size
        enough = (n for n in range(1, columns) if columns % n == 0 and rows * n >= self.ranks)
        return next(enough, columns)

    def rank_size(self, local: Local) -> int:
        """Elements of one shard, padding included."""
        pieces = self.pieces(local)
        return -(-local.shape[0] * pieces // self.ranks) * (local.row_size // pieces)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each weight begins in the flat shard, and where the last ends: there the tail begins."""
        offsets = [0]
        for local in self.locals:
            offsets.append(offsets[-1] + self.rank_size(local))
        return tuple(offsets)

    @property
    def size(self) -> int:
        """Elements of a flat shard, the tail included."""
        return aligned(self.offsets[-1])

    @property
    def decayed(self) -> int:
        """The flat range [0, decayed) takes weight decay."""
        return self.offsets[sum(local.weight_decay for local in self.locals)]

    def ranges(self) -> list[tuple[Local, int, int]]:
        """(weight, begin, end) in the flat shard."""
        return list(zip(self.locals, self.offsets[:-1], self.offsets[1:], strict=True))

    def boxes(self, rank: int) -> list[tuple[Local, Box]]:
        """Every block of a logical parameter in the shard of `rank`."""
        return [
            (local, box)
            for local, begin, end in self.ranges()
            for packed in local.packs
            for box in self._boxes_of(packed, local, rank, begin, end)
        ]

    def _boxes_of(self, packed: Packed, local: Local, rank: int, begin: int, end: int) -> Iterator[Box]:
        """Where rows are whole one block, else one for each piece."""
        pieces = self.pieces(local)
        size = local.row_size // pieces
        first, last = (number * (end - begin) // size for number in (rank, rank + 1))
        low, high = max(first, packed.row * pieces), min(last, (packed.row + packed.rows) * pieces)
        if pieces == 1:
            if low < high:
                start = (packed.start[0] + low - packed.row, *packed.start[1:])
                yield Box(packed.logical, start, (high - low, *local.shape[1:]), begin + (low - first) * size)
            return
        for number in range(low, high):
            row, piece = divmod(number, pieces)
            start = (packed.start[0] + row - packed.row, packed.start[1] + piece * size)
            yield Box(packed.logical, start, (1, size), begin + (number - first) * size)
