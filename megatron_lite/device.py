"""The few lines that depend on the kind of device."""

import ctypes
import resource

import torch

from megatron_lite.place import find_place


def local_device() -> torch.device:
    """This process's accelerator (by its rank on the node), or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    device = torch.device(accelerator.type, find_place().local_rank)
    torch.accelerator.set_device_index(device.index)
    return device


def backend(device: torch.device) -> str:
    """The process-group backend for a device."""
    return {"cuda": "nccl", "xpu": "xccl"}.get(device.type, "gloo")


def to_device(array, device: torch.device) -> torch.Tensor:
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


def memory_bytes() -> tuple[int, str]:
    """Peak memory so far and its kind: the accelerator's allocated peak, or the process's resident set."""
    if torch.accelerator.is_available():
        return int(torch.accelerator.max_memory_allocated()), "accelerator_peak"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "resident_set_peak"


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
