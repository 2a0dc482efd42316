"""The few lines that depend on the kind of device."""

import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from megatron_lite.errors import UsageError
from megatron_lite.place import Place

DeviceKind = Literal["auto", "cpu", "cuda"]
Urgency = Literal["usual", "first", "small"]


def local_device(asked: DeviceKind, place: Place) -> tuple[torch.device, str]:
    """This process's device, by its rank on the node, and why: a line for the log.

    `auto` takes an accelerator only where the node has one for each of its ranks. Raises UsageError where `cuda` is
    asked for and that is not so.
    """
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = None if available is None else available.type
    kind, why = choose_device(asked, kind, torch.accelerator.device_count() if kind else 0, place)
    if kind == "cpu":
        return torch.device("cpu"), why
    torch.accelerator.set_device_index(place.local_rank)
    return torch.device(kind, place.local_rank), why


def choose_device(asked: DeviceKind, kind: str | None, count: int, place: Place) -> tuple[str, str]:
    """The kind of device, and why, on a node with `count` accelerators of a `kind` (None: it has none)."""
    ranks, has = place.local_world_size, f"{count} of kind {kind}" if kind else "none"
    if asked == "cpu":
        return "cpu", "device: cpu (asked for)"
    if kind is not None and count >= ranks and asked in ("auto", kind):
        return kind, f"device: {kind} ({asked}; accelerators of this node: {has}, ranks: {ranks})"
    if asked == "auto":
        return "cpu", f"device: cpu (auto; accelerators of this node: {has}, ranks: {ranks})"
    raise UsageError(
        f"device = {asked}: needs one for each of this node's {ranks} ranks, it has {has}; start as many ranks as it "
        "has, or ask for cpu"
    )


def prepare(device: torch.device, flight: Path | None) -> None:
    """What has to be set before the first product and the first process group. What the user's environment has stays.

    Sums of a product split over its inner dimension stay in float32, and cuBLAS keeps one workspace a stream, without
    which its results differ from run to run. Where a rank waits in vain, NCCL's watchdog writes each rank's last calls
    to the directory `flight` (None: nowhere).
    """
    keep_freed_memory(device)
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if flight is not None:
        flight.mkdir(parents=True, exist_ok=True)
    for name, value in accelerator_environment(flight).items():
        os.environ.setdefault(name, value)


def accelerator_environment(flight: Path | None) -> dict[str, str]:
    """What cuBLAS and NCCL read nowhere but in the environment; each name of the recorder in its older form, too."""
    told = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if flight is not None:
        calls, prefix = "20000", str(flight / "rank_")  # a few steps of a stage of the 65B model
        told |= {
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_FR_BUFFER_SIZE": calls,
            "TORCH_NCCL_TRACE_BUFFER_SIZE": calls,
            "TORCH_FR_DUMP_TEMP_FILE": prefix,
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix,
        }
    return told


def backend(device: torch.device) -> str:
    """The process-group backend for a device."""
    return {"cuda": "nccl", "xpu": "xccl"}.get(device.type, "gloo")


def group_options(device: torch.device, urgency: Urgency, timeout: timedelta | None) -> Any:
    """Options of a process group on NCCL; None elsewhere.

    first   its kernels go before products that were issued at the same time, or a gather that a product could hide
            would begin when the product ends
    small   a channel of the pipeline: its kernel may stand waiting beside products, so it takes two multiprocessors
    """
    if device.type != "cuda":
        return None
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=urgency == "first")
    if urgency == "small":
        options.config.max_ctas = 2
    if timeout is not None:
        options._timeout = timeout  # torch warns where it differs from the argument
    return options


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done all that was asked of it."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a numpy array to the device, through pinned memory where that makes the copy asynchronous."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let glibc keep what a step frees for the next one, instead of giving it back and faulting it in again.

    Without this the page faults of a small model's step cost about a tenth of its time. Other C libraries have no such
    setting and are left alone; accelerators have an allocator of their own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes


@dataclass(frozen=True)
class Memory:
    """This process's memory in bytes: the peak of what tensors took, the peak of what the allocator held for them, and
    what is free on the device now. On a CPU the peak is the resident set's, and the rest 0.
    """

    peak: int
    reserved: int = 0
    free: int = 0


def memory_of(device: torch.device) -> Memory:
    """The memory that this process has taken so far on its device."""
    if device.type in ("cpu", "meta"):
        return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return Memory(
        torch.accelerator.max_memory_allocated(device), torch.accelerator.max_memory_reserved(device),
        torch.accelerator.get_memory_info(device)[0],
    )  # fmt: skip


def total_memory(device: torch.device, local_world_size: int) -> int:
    """Bytes of an accelerator's memory; on a CPU, this process's even share of the host's among the node's ranks."""
    if device.type == "cpu":
        return host_memory() // local_world_size
    return torch.get_device_module(device).get_device_properties(device).total_memory


def host_memory() -> int:
    """Bytes of the machine's memory, or of what a container or batch job may have of it where that is less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_control_group_limits()])


def _control_group_limits(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """`memory.max` of this process's control group (version 2) and of those around it; "max" is none."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    for line in lines:
        if line.startswith("0::/"):
            group = groups / line.removeprefix("0::/")
            for path in (group, *group.parents):
                limit = path / "memory.max"
                if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
                    yield int(text)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
