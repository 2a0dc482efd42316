"""Which stored blocks fill which boxes. Integers only: nothing here reads a file.

A checkpoint holds each logical parameter as blocks, cut as the layout that saved it was cut. A rank of another layout
needs boxes, cut otherwise. A box is filled by its intersections with the blocks; a parameter is whole if its blocks
tile it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from megatron_lite.errors import DataError


@dataclass(frozen=True)
class Block:
    """Elements [start, start + shape) of a logical parameter, stored in `file`."""

    file: str
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def stop(self) -> tuple[int, ...]:
        return tuple(s + n for s, n in zip(self.start, self.shape, strict=True))

    def __str__(self) -> str:
        return "[" + ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


@dataclass(frozen=True)
class Read:
    """Copy `source` of a stored block to `target` of a box."""

    block: Block
    source: tuple[slice, ...]
    target: tuple[slice, ...]

    @property
    def size(self) -> int:
        return prod(s.stop - s.start for s in self.source)

    def portions(self, most: int) -> Iterator["Read"]:
        """The same copy a few rows at a time: rows of the block of at most `most` elements, and at least one row."""
        rows = max(1, most // prod(self.block.shape[1:]))
        (source, *columns), (target, *places) = self.source, self.target
        for begin in range(source.start, source.stop, rows):
            end, shift = min(begin + rows, source.stop), target.start - source.start
            into = slice(begin + shift, end + shift)
            yield Read(self.block, (slice(begin, end), *columns), (into, *places))


def plan_reads(start: tuple[int, ...], shape: tuple[int, ...], blocks: Iterable[Block]) -> list[Read]:
    """What to copy into the box [start, start + shape): its intersection with every block that touches it."""
    stop = tuple(s + n for s, n in zip(start, shape, strict=True))
    reads = []
    for block in blocks:
        low = tuple(map(max, start, block.start))
        high = tuple(map(min, stop, block.stop))
        if all(a < b for a, b in zip(low, high, strict=True)):
            reads.append(Read(block, _relative(low, high, block.start), _relative(low, high, start)))
    return reads


def check_tiling(name: str, shape: tuple[int, ...], blocks: Sequence[Block]) -> None:
    """Raise DataError unless the blocks cover every element of the parameter exactly once.

    Counts on the coarsest grid that all block borders fit, so that the cost is that of borders, not of elements.
    """
    for block in blocks:
        inside = len(block.shape) == len(shape) and all(
            0 <= a < b <= n for a, b, n in zip(block.start, block.stop, shape, strict=True)
        )
        if not inside:
            raise DataError(f"{name}: block {block} of {block.file} lies outside the shape {list(shape)}")
    borders = [sorted({0, n, *(edge for b in blocks for edge in (b.start[d], b.stop[d]))}) for d, n in enumerate(shape)]
    position = [{border: i for i, border in enumerate(axis)} for axis in borders]
    covered = np.zeros([len(axis) - 1 for axis in borders], dtype=np.int64)
    for block in blocks:
        cells = zip(position, block.start, block.stop, strict=True)
        covered[tuple(slice(at[a], at[b]) for at, a, b in cells)] += 1
    for wrong, what in ((covered == 0, "no block holds"), (covered > 1, "several blocks hold")):
        if wrong.any():
            cell = np.argwhere(wrong)[0]
            first = [axis[i] for axis, i in zip(borders, cell, strict=True)]
            raise DataError(f"{name}: {what} the element at {first}; each must be held exactly once")


def _relative(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
