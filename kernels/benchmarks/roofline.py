"""The least time in which an operation could be done: its bytes and products at a device's published figures.

No measurement, and nothing that a kernel is promised to reach (Williams, Waterman and Patterson 2009, Roofline).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_lite.kernels.benchmarks.operation import Operation
from megatron_lite.kernels.benchmarks.table import Row


@dataclass(frozen=True)
class Device:
    """Memory's bytes and dense bfloat16 FLOPs a second, as the maker gives them."""

    bytes: float
    flops: float


DEVICES = {
    "A100 SXM 80 GB": Device(2.039e12, 312e12),
    "H100 SXM": Device(3.35e12, 989e12),
    "B200": Device(8.0e12, 2250e12),
    "MI300X": Device(5.3e12, 1307e12),
}


def least_seconds(operation: Operation, device: Device) -> float:
    """What is not a product of matrices needs its bytes moved; the rest is computed meanwhile."""
    seconds = operation.cost.moved / device.bytes
    return max(seconds, operation.cost.flops / device.flops) if operation.by_products else seconds


def roofline_rows(operations: Iterable[Operation], name: str) -> list[Row]:
    rows = []
    for operation in operations:
        seconds = least_seconds(operation, DEVICES[name])
        work, unit = work_of(operation)
        rows.append(Row("roofline", operation.name, "bound", name, 1e3 * seconds, rate=work / seconds, unit=unit))
    return rows


def work_of(operation: Operation) -> tuple[int, str]:
    """What an operation's rate counts."""
    return (operation.cost.flops, "FLOP/s") if operation.by_products else (operation.cost.moved, "B/s")
