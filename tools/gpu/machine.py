"""A GPU, and a CPU in its place for toys, behind the same calls. No other file of the day names torch.cuda.

Times lie between two marks; `median_ms` takes many. A mark on a GPU is an event in the current stream, on a CPU the
clock. Everything used here is in torch 2.11.
"""

import gc
import os
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_lite.device import prepare
from megatron_lite.planning.memory import StorageTracker

FLUSH = 2**28  # bytes written to empty a GPU's caches: more than any has


class Machine(Protocol):
    device: torch.device
    backend: str  # of the kernels
    group: str  # of process groups

    def about(self) -> dict[str, Any]: ...
    def synchronize(self) -> None: ...
    def mark(self) -> Any: ...
    def between_ms(self, begin: Any, end: Any) -> float: ...
    def flush(self) -> None: ...
    def bytes_taken(self) -> int: ...
    def watch_memory(self) -> "Memory": ...
    def give_memory_back(self) -> None: ...
    def profiled(self, call: Callable[[], object]) -> tuple[profile, list[tuple[str, float, int]]]: ...


class Memory(Protocol):
    """What tensors hold, from `watch_memory` on."""

    def __enter__(self) -> "Memory": ...
    def __exit__(self, *error: object) -> None: ...
    def forget_peak(self) -> None: ...
    @property
    def peak(self) -> int: ...
    @property
    def reserved(self) -> int: ...


def median_ms(machine: Machine, call: Callable[[], object], repeats: int, flushed: bool = False) -> float:
    """Of so many calls after three; `flushed`: each finds the caches emptied."""
    for _ in range(3 if repeats > 1 else 0):
        call()
    marks = []
    for _ in range(repeats):
        if flushed:
            machine.flush()
        begin = machine.mark()
        call()
        marks.append((begin, machine.mark()))
    machine.synchronize()
    return median(machine.between_ms(begin, end) for begin, end in marks)


class Gpu:
    """One GPU. `stream`, `waits_of_the_host` and `released_together` have no like on a CPU."""

    backend, group = "triton", "nccl"

    def __init__(self, index: int = 0):
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        prepare(self.device, Path(tempfile.gettempdir()) / "gpu_day" / "flight")  # as every run does
        self._flush = None

    def about(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        query = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,driver_version"
        smi = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={self.device.index}"]
        said = subprocess.run(smi, capture_output=True, text=True)
        return {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "free_bytes": torch.cuda.mem_get_info(self.device)[0],
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": torch.backends.cudnn.version(),
            "nvidia-smi": f"{query}: {said.stdout.strip() or said.stderr.strip()}",
        }

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return begin.elapsed_time(end)

    def flush(self) -> None:
        if self._flush is None:
            self._flush = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
        self._flush.zero_()

    def bytes_taken(self) -> int:
        """By everybody on the GPU, contexts and communicators too."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def watch_memory(self) -> "GpuMemory":
        return GpuMemory()

    def give_memory_back(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def profiled(self, call: Callable[[], object]) -> tuple[profile, list[tuple[str, float, int]]]:
        """The profile of a call, and (kernel, milliseconds, launches), the longest first."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        # Only what ran on the GPU itself: rows of operations, and of names given to a span, have its time once more.
        cuda = torch.autograd.DeviceType.CUDA
        on_device = [row for row in profiler.key_averages() if row.device_type == cuda and not row.is_user_annotation]
        rows = [(row.key, row.self_device_time_total / 1e3, row.count) for row in on_device]
        return profiler, sorted(rows, key=lambda row: -row[1])

    def stream(self, priority: int = 0) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device, priority=priority)

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager:
        return torch.cuda.stream(stream)

    def released_together(self, first: Callable[[], object], second: Callable[[], object], priority: int,
                          hold: Callable[[], object]) -> tuple[float, float]:  # fmt: skip
        """Milliseconds until `first`, on a stream of that priority, and `second`, on the usual one, are done, when both
        wait for what `hold` does and `first` is issued first.
        """
        other = self.stream(priority)
        torch.cuda.synchronize()
        hold()
        gate = self.mark()
        with self.on(other):
            other.wait_event(gate)
            first()
            first_done = self.mark()
        second()
        second_done = self.mark()
        torch.cuda.synchronize()
        return gate.elapsed_time(first_done), gate.elapsed_time(second_done)

    @contextmanager
    def waits_of_the_host(self) -> Iterator[Counter[str]]:
        """Counts, by the line of Python that asked, the calls that make the host wait for the GPU."""
        found: Counter[str] = Counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        asked = (one for one in caught if "synchronizing CUDA operation" in str(one.message))
        found.update(f"{Path(one.filename).name}:{one.lineno}" for one in asked)


class GpuMemory:
    """By torch's allocator, without what it held before."""

    def __enter__(self) -> "GpuMemory":
        gc.collect()
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left open."""

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before

    @property
    def reserved(self) -> int:
        return torch.cuda.max_memory_reserved()


class Cpu:
    """This machine, for toys: its times are no findings, everything else is computed as on a GPU."""

    backend, group = "torch", "gloo"

    def __init__(self, index: int = 0):
        del index
        self.device = torch.device("cpu")

    def about(self) -> dict[str, Any]:
        return {"gpu": "none: a toy on a CPU", "gpus": 0}

    def synchronize(self) -> None:
        """A CPU is done when its call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def between_ms(self, begin: float, end: float) -> float:
        return 1e3 * (end - begin)

    def flush(self) -> None:
        """A toy's times say nothing anyway."""

    def bytes_taken(self) -> int:
        """By this process: its resident set."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def watch_memory(self) -> "CpuMemory":
        return CpuMemory()

    def give_memory_back(self) -> None:
        """Nothing is kept."""

    def profiled(self, call: Callable[[], object]) -> tuple[profile, list[tuple[str, float, int]]]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        rows = [(row.key, row.self_cpu_time_total / 1e3, row.count) for row in profiler.key_averages()]
        return profiler, sorted(rows, key=lambda row: -row[1])


class CpuMemory:
    """Storages alive, as on paper."""

    def __init__(self):
        self.tracker = StorageTracker(torch.device("cpu"))

    def __enter__(self) -> "CpuMemory":
        self.tracker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.tracker.__exit__(*error)

    def forget_peak(self) -> None:
        self.tracker.peak = self.tracker.live

    @property
    def peak(self) -> int:
        return self.tracker.peak

    reserved = peak


def machine_of(toy: bool, index: int = 0) -> Machine:
    """Raises RuntimeError, from torch, where there is no GPU of that index and no toy was asked for."""
    return Cpu(index) if toy else Gpu(index)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors are full of NaN, or of the largest integer."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)
