"""Times on a GPU: ours beside plain PyTorch, torch.compile and Liger, as shares of what the GPU was seen to reach."""

from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec

import torch
from megatron_lite.kernels.benchmarks.operation import Memory, Operation
from megatron_lite.kernels.benchmarks.roofline import Device, work_of
from megatron_lite.kernels.benchmarks.table import Row

Quantiles = tuple[float, float, float]  # milliseconds: median, 20%, 80%
Bench = Callable[[Callable[[], object]], Quantiles]
MAKERS = ("ours", "torch", "torch.compile", "liger")


def bench_on_gpu(call: Callable[[], object]) -> Quantiles:
    """Each run finds the caches emptied."""
    from triton.testing import do_bench

    return tuple(do_bench(call, warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8]))


def ceilings(bench: Bench, memory: Memory, size: int = 2**29, edge: int = 8192) -> Device:
    """What a copy of `size` numbers and a product of two square matrices reach."""
    source, target = memory.normal(size), memory.normal(size)
    copied = bench(lambda: target.copy_(source))[0]
    left, right = memory.normal(edge, edge), memory.normal(edge, edge)
    multiplied = bench(lambda: left @ right)[0]
    return Device(2 * source.nbytes / copied * 1e3, 2 * edge**3 / multiplied * 1e3)


def measured_rows(operations: Iterable[Operation], memory: Memory, bench: Bench, reached: Device, name: str,
                  makers: Collection[str] = MAKERS) -> Iterator[Row]:  # fmt: skip
    """A row for every operation and each of the makers' implementations, one after the other, as it is measured.

    What raises gives a row that says so: after an illegal access on the GPU all that follow do.
    """
    for operation in operations:
        for by, call in implementations(operation, makers).items():
            try:
                row = _measured(operation, by, call, memory, bench, reached, name)
            except Exception as error:  # shown in the row; others may still be measured
                row = Row("failed", operation.name, by, name, error=f"{type(error).__name__}: {str(error)[:300]}")
            yield row


def _measured(operation: Operation, by: str, call: Callable, memory: Memory, bench: Bench, reached: Device,
              name: str) -> Row:  # fmt: skip
    work, unit = work_of(operation)
    arguments = operation.inputs(memory)
    peak = peak_memory(lambda: call(*arguments))
    median, low, high = bench(lambda: call(*arguments))
    rate = work / median * 1e3
    ceiling = reached.flops if operation.by_products else reached.bytes
    return Row("measured", operation.name, by, name, median, low, high, rate, unit, rate / ceiling, peak)


def implementations(operation: Operation, makers: Collection[str] = MAKERS) -> dict[str, Callable]:
    """By maker, with the same arguments. torch.compile compiles at the first call, which may take minutes."""
    found = {"ours": operation.call, "torch": operation.reference}
    if "torch.compile" in makers:
        found["torch.compile"] = torch.compile(operation.reference)
    if rival := liger().get(operation.name):
        found["liger"] = rival
    return {by: call for by, call in found.items() if by in makers}


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes taken beyond what was there, after a first call; None where there is no GPU."""
    call()
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def liger() -> dict[str, Callable]:
    """Liger's launchers of what it also has on these tensors, where it is installed; rows of up to 8192 columns."""
    if not find_spec("liger_kernel"):
        return {}
    norm, add = import_module("liger_kernel.ops.rms_norm"), import_module("liger_kernel.ops.fused_add_rms_norm")
    swiglu, settings = import_module("liger_kernel.ops.swiglu"), import_module("liger_kernel.ops.utils")

    def norm_backward(dy, _, x, weight, scales):
        block = settings.calculate_settings(x.shape[-1])
        return norm.rms_norm_backward(dy, x, weight, scales, 0.0, 0, *block, False, None)

    def add_backward(dy, dtotal, total, weight, scales):
        block = settings.calculate_settings(total.shape[-1])
        return add.fused_add_rms_norm_backward(dy, dtotal, total, weight, scales, 0.0, 0, *block, 2, False)

    def add_forward(x, residual, weight, eps):
        return add.fused_add_rms_norm_forward(x, residual, weight, eps, 0.0, "llama")

    return {
        "rms_norm": lambda x, weight, eps: norm.rms_norm_forward(x, weight, eps, 0.0, "llama", None),
        "rms_norm_backward": norm_backward,
        "add_rms_norm": add_forward,
        "add_rms_norm_backward": add_backward,
        "swiglu": swiglu.swiglu_fused_gate_up_forward,
        "swiglu_backward": lambda dy, gate_up: swiglu.swiglu_fused_gate_up_backward(gate_up, dy),
    }
