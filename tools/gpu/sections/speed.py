"""Bytes a second of every memory-bound kernel, as a share of what a copy reaches here."""

from collections.abc import Sequence

import torch
from megatron_lite.kernels.benchmarks import ours
from megatron_lite.kernels.benchmarks.operation import Memory, Operation
from megatron_lite.kernels.benchmarks.timing import bench_on_gpu, ceilings, measured_rows
from megatron_lite.kernels.interpreter import interpreting, make_exact

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import Machine, machine_of, median_ms

COMPILED = ("rms_norm", "add_rms_norm", "swiglu", "swiglu_backward", "rope_")  # torch.compile takes a while for each


def run(day: Day, findings: Findings) -> None:
    if interpreting():
        make_exact()
    machine = machine_of(day.toy)
    memory = Memory(machine.device.type, filled=True)
    bench = bench_on_gpu if not day.toy else lambda call: (median_ms(machine, call, 1),) * 3
    reached = ceilings(bench, memory, *((2**20, 128) if day.toy else ()))
    findings.say("ceilings", copy_bytes_per_second=reached.bytes, product_tflops=reached.flops / 1e12)
    bound = [one for one in (toy_operations() if day.toy else ours.operations()) if not one.by_products]
    say_rows(bound, memory, bench, reached, machine, False, findings)
    if not day.toy:
        slow = [one for one in bound if one.name in COMPILED]
        say_rows(slow, memory, bench, reached, machine, True, findings)


def say_rows(operations: Sequence[Operation], memory: Memory, bench, reached, machine: Machine, compiles: bool,
             findings: Findings) -> None:  # fmt: skip
    name = str(machine.about()["gpu"])
    only = ("torch.compile",) if compiles else ("ours", "torch", "liger")
    for row in measured_rows(operations, memory, bench, reached, name, only):
        if row.error:
            findings.say("kernel", operation=row.operation, by=row.by, error=row.error)
        else:
            findings.say("kernel", operation=row.operation, by=row.by, ms=row.median_ms, bytes_per_second=row.rate,
                         share=row.share, more_bytes=row.peak_bytes)  # fmt: skip


def toy_operations() -> list[Operation]:
    """The tests' cases as operations: small, with costs in closed form."""
    from support.kernels.cases import CASES
    from support.kernels.harness import Case, fresh

    def operation(case: Case) -> Operation:
        size = case.sizes[0]
        return Operation(
            case.name, case.kernel, case.reference, lambda memory: case.inputs(size, torch.bfloat16, fresh()),
            case.cost(size, 2, 4), {}, by_products="attention" in case.name,
        )  # fmt: skip

    return [operation(case) for case in CASES]
