"""What each operation has to move and compute, in closed form: bytes and floating-point operations.

`read` and `written` count each distinct element of inputs and outputs once. `again` is what a kernel asks for beyond
that, with the reason: the table's exceptions. Tests hold all three against what the kernels ask for, lane by lane;
benchmarks divide by time.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of one call."""

    read: int
    written: int
    again: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.read + other.read, self.written + other.written, self.again + other.again, self.flops + other.flops
        )

    @property
    def moved(self) -> int:
        """Bytes that have to pass memory."""
        return self.read + self.written


def rms_norm(rows: int, columns: int, element: int, exact: int = 4) -> Cost:
    """Each row's program asks for the weight; all but the first find it in the cache."""
    x = rows * columns * element
    weight = columns * element
    return Cost(x + weight, x + rows * exact, (rows - 1) * weight, 5 * rows * columns)


def add_rms_norm(rows: int, columns: int, element: int, exact: int = 4) -> Cost:
    x = rows * columns * element
    return rms_norm(rows, columns, element, exact) + Cost(x, x, 0, rows * columns)


def rms_norm_backward(rows: int, columns: int, element: int, adds: bool, exact: int = 4, partials: int = 128) -> Cost:
    """Each of the partial sums' programs asks for the weight; the partial sums are outputs."""
    x, weight, parts = rows * columns * element, columns * element, min(rows, partials)
    read = (3 if adds else 2) * x + rows * exact + weight
    return Cost(read, x + parts * columns * exact, (parts - 1) * weight, 12 * rows * columns)


def add_partials_(parts: int, columns: int, exact: int = 4) -> Cost:
    return Cost((parts + 1) * columns * exact, columns * exact, 0, parts * columns)


def swiglu(elements: int, element: int) -> Cost:
    """`elements` of y."""
    return Cost(2 * elements * element, elements * element, 0, 5 * elements)


def swiglu_backward(elements: int, element: int) -> Cost:
    return Cost(3 * elements * element, 2 * elements * element, 0, 12 * elements)


def rope_(
    rows: int, heads: int, head_dim: int, positions: int, element: int, exact: int = 4, together: int = 3
) -> Cost:
    """`rows` of qkv at so many different positions, `heads` of each turned: the values are not among them.

    Each program asks for its rows' positions and angles and turns `together` heads by them.
    """
    turned, angles = rows * heads * head_dim * element, head_dim * exact
    asked = rows * -(-heads // together) * (angles + 4)
    once = rows * 4 + positions * angles
    return Cost(turned + once, turned, asked - once, 3 * rows * heads * head_dim)


def embedding_backward_(
    tokens: int, ours: int, rows: int, columns: int, element: int, exact: int = 4, block: int = 1024
) -> Cost:
    """`tokens`, of which `ours` are looked up here, in `rows` different rows.

    The sort is torch's and not counted. Each program of `block` columns asks for its token and the one before; the
    first of a row also for where the row ends and for its positions. All of these have 8 bytes.
    """
    gradient, blocks = rows * columns * exact, -(-columns // block)
    once = 8 * (tokens + rows + ours)
    asked = 8 * blocks * (2 * tokens + rows + ours)
    return Cost(gradient + ours * columns * element + once, gradient, asked - once, (ours + rows) * columns)


def adamw_(size: int, element: int, exact: int = 4, clips: bool = True, block: int = 1024) -> Cost:
    """16 bytes read and 12 written a parameter, and `element` for the copy (0: none). Each block asks for the clip."""
    clip = exact if clips else 0
    blocks = -(-size // block)
    return Cost(4 * size * exact + clip, size * (3 * exact + element), (blocks - 1) * clip, 15 * size)


def square_norm(lengths: Sequence[int], exact: int = 4, block: int = 65536) -> Cost:
    """Elements of each shard. A block has a table row of 16 bytes and one partial sum."""
    blocks, elements = sum(-(-length // block) for length in lengths), sum(lengths)
    return Cost(elements * exact + 16 * blocks, blocks * exact, 0, 2 * elements)


def add_product_(rows: int, columns: int, tokens: int, element: int, exact: int = 4) -> Cost:
    """A matrix product that reads and writes its sum [rows, columns] in place."""
    total, operands = rows * columns * exact, tokens * (rows + columns) * element
    return Cost(total + operands, total, 0, 2 * tokens * rows * columns)


def cross_entropy_statistics(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """The vocabulary's columns once, not the padding's; a label of 8 bytes."""
    return Cost(rows * (real * element + 8), rows * 2 * exact, 0, 4 * rows * real)


def cross_entropy_gradient_(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """Padding is written and not read. Beside its label a row has three numbers: log-sum and two gradients."""
    return Cost(rows * (real * element + 8 + 3 * exact), rows * columns * element, 0, 3 * rows * real)
