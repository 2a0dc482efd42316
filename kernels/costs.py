"""What each operation has to move and compute, in closed form: bytes and floating-point operations.

`read` and `written` count each distinct element of inputs and outputs once. `again` is what a kernel asks for beyond
that, with the reason: the table's exceptions. Tests hold all three against what the kernels ask for, lane by lane;
benchmarks divide by time.
"""

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
