"""Bytes that live on a device, from the storages that operations make: exact on meta tensors too.

Not seen: what a kernel needs while it runs and gives back, and an allocator's fragmentation.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALLEST = 1024  # storages of fewer bytes, scalars above all, are left out


class StorageTracker(TorchDispatchMode):
    """While entered, counts every storage that an operation makes on `device` until its last tensor is gone.

    `live` has the bytes alive now, `peak` their highest, `at_peak` what `inspect` (if set) said of them then, and
    `made_at_peak` the size of the storage that was made then, which nobody held yet.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.live = self.peak = self.made_at_peak = 0
        self.inspect: Callable[[], Mapping[str, int]] = dict
        self.at_peak: Mapping[str, int] = {}
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        results = function(*arguments, **(named or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.device == self.device:
                self._see(tensor.untyped_storage())
        return results

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size < SMALLEST:
            return
        self._known[key] = weakref.finalize(storage, self._gone, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak, self.at_peak, self.made_at_peak = self.live, self.inspect(), size

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


def bytes_of(tensors: Iterable[torch.Tensor | None]) -> int:
    """Of the distinct storages behind some tensors."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(size for size in storages.values() if size >= SMALLEST)
