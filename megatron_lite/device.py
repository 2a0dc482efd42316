"""The few lines that depend on the kind of device."""

import os
import resource

import torch


def local_device() -> torch.device:
    """This process's accelerator (by torchrun's LOCAL_RANK), or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
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


def memory_bytes() -> tuple[int, str]:
    """Peak memory so far and its kind: the accelerator's allocated peak, or the process's resident set."""
    if torch.accelerator.is_available():
        return int(torch.accelerator.max_memory_allocated()), "accelerator_peak"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "resident_set_peak"


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
