import math
import random
from itertools import pairwise

import numpy as np
import pytest

from megatron_lite.checkpoint.blocks import Block, check_tiling, plan_reads
from megatron_lite.errors import DataError


def grid(shape, cuts, seed=0):
    """Blocks of a random grid, in random order: `cuts` borders inside each dimension."""
    rng = random.Random(seed)
    axes = [sorted({0, n, *rng.sample(range(1, n), min(cuts, n - 1))}) for n in shape]
    blocks = [((), ())]
    for axis in axes:
        blocks = [((*start, a), (*size, b - a)) for start, size in blocks for a, b in pairwise(axis)]
    rng.shuffle(blocks)
    return [Block(f"file{i}", start, size) for i, (start, size) in enumerate(blocks)]


@pytest.mark.parametrize("shape", [(13,), (9, 14)])
@pytest.mark.parametrize("seed", range(5))
def test_the_reads_of_any_box_rebuild_it_exactly(shape, seed):
    whole = np.arange(np.prod(shape)).reshape(shape)
    stored = {b.file: whole[tuple(map(slice, b.start, b.stop))] for b in grid(shape, 3, seed)}
    for box in grid(shape, 2, seed + 100):
        filled = np.full(box.shape, -1)
        for read in plan_reads(box.start, box.shape, grid(shape, 3, seed)):
            assert (filled[read.target] == -1).all(), "an element was read twice"
            filled[read.target] = stored[read.block.file][read.source]
        np.testing.assert_array_equal(filled, whole[tuple(map(slice, box.start, box.stop))])


def test_only_the_overlap_is_read():
    reads = plan_reads(
        (2, 3), (4, 2), [Block("a", (0, 0), (3, 8)), Block("b", (3, 0), (5, 8)), Block("c", (0, 8), (8, 1))]
    )
    assert [(r.block.file, r.source, r.target, r.size) for r in reads] == [
        ("a", (slice(2, 3), slice(3, 5)), (slice(0, 1), slice(0, 2)), 2),
        ("b", (slice(0, 3), slice(3, 5)), (slice(1, 4), slice(0, 2)), 6),
    ]


def test_blocks_that_only_touch_a_box_are_not_read():
    assert plan_reads((4,), (4,), [Block("a", (0,), (4,)), Block("b", (8,), (4,))]) == []


@pytest.mark.parametrize("most", [1, 7, 20, 1000])
def test_the_portions_of_a_read_are_whole_rows_and_make_it_up(most):
    (read,) = plan_reads((2, 3), (6, 4), [Block("a", (1, 1), (5, 7))])
    portions = list(read.portions(most))
    assert sum(portion.size for portion in portions) == read.size
    assert all((portion.source[1], portion.target[1]) == (read.source[1], read.target[1]) for portion in portions)
    for side in ("source", "target"):
        rows = [getattr(portion, side)[0] for portion in portions]
        all_of_them = getattr(read, side)[0]
        assert [row for some in rows for row in range(some.start, some.stop)] == list(
            range(all_of_them.start, all_of_them.stop)
        )
    assert len(portions) == math.ceil(4 / max(1, most // 7))


@pytest.mark.parametrize("shape", [(13,), (9, 14)])
def test_a_tiling_passes_and_each_missing_or_doubled_block_is_named(shape):
    blocks = grid(shape, 3)
    check_tiling("w", shape, blocks)
    for i, block in enumerate(blocks):
        with pytest.raises(DataError, match=r"w: no block holds the element at .*") as error:
            check_tiling("w", shape, blocks[:i] + blocks[i + 1 :])
        assert str(list(block.start)) in str(error.value)
        with pytest.raises(DataError, match="w: several blocks hold"):
            check_tiling("w", shape, [*blocks, block])


def test_a_hole_that_an_overlap_of_equal_size_would_balance_is_found():
    with pytest.raises(DataError, match="no block holds"):
        check_tiling("w", (6,), [Block("a", (0,), (2,)), Block("b", (0,), (2,)), Block("c", (4,), (2,))])


def test_a_parameter_without_blocks_is_a_hole():
    with pytest.raises(DataError, match=r"no block holds the element at \[0, 0\]"):
        check_tiling("w", (2, 2), [])


@pytest.mark.parametrize("block", [Block("a", (0,), (3,)), Block("a", (0, 0), (2, 3)), Block("a", (-1, 0), (2, 2))])
def test_a_block_outside_its_parameter_is_refused(block):
    with pytest.raises(DataError, match="lies outside"):
        check_tiling("w", (2, 2), [block])
