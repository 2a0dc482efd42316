"""Watching kernels in Triton's CPU interpreter: the order of programs, bytes asked for, lanes out of bounds."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

SECTOR = 32  # bytes, what a GPU reads at once


@contextmanager
def program_order(seed: int | None) -> Iterator[None]:
    """Run a grid's programs in reverse order (None) or in a random one."""
    builder = interpreter.InterpreterBuilder
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
    order: list[int] = []

    def dim(self, *sizes):
        order[:] = range(sizes[0] * sizes[1] * sizes[2])
        if seed is None:
            order.reverse()
        else:
            random.Random(seed).shuffle(order)
        return set_dim(self, *sizes)

    def index(self, x, y, z):
        _, ny, nz = self.grid_dim
        place = order[(x * ny + y) * nz + z]
        return set_index(self, place // (ny * nz), place // nz % ny, place % nz)

    builder.set_grid_dim, builder.set_grid_idx = dim, index
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx = set_dim, set_index


@dataclass
class Argument:
    """What a kernel asked of one tensor argument. Bytes; distinct ones count each element once."""

    loaded: int = 0
    stored: int = 0
    distinct_loaded: int = 0
    distinct_stored: int = 0


@dataclass
class Traffic:
    """All launches seen. `outside` counts lanes beyond the elements of the view that was passed."""

    arguments: dict[str, Argument] = field(default_factory=dict)
    outside: int = 0

    @property
    def loaded(self) -> int:
        return sum(argument.loaded for argument in self.arguments.values())

    @property
    def stored(self) -> int:
        return sum(argument.stored for argument in self.arguments.values())


class _View:
    """The element addresses of a tensor argument, and which were touched."""

    def __init__(self, tensor: Tensor, argument: Argument):
        self.argument, self.size = argument, tensor.element_size()
        offsets = np.zeros(1, np.int64)
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = (offsets[:, None] + np.arange(length)[None, :] * stride).ravel()
        offsets = np.unique(offsets)
        self.begin = tensor.data_ptr()
        self.valid = np.zeros(int(offsets[-1]) + 1 if offsets.size else 0, bool)
        self.valid[offsets] = True
        self.seen = {"loaded": np.zeros_like(self.valid), "stored": np.zeros_like(self.valid)}

    def holds(self, address: int) -> bool:
        return self.begin <= address < self.begin + self.valid.size * self.size

    def note(self, addresses: np.ndarray, kind: str) -> int:
        """Count an access; returns how many lanes were outside the view."""
        index, rest = np.divmod(addresses - self.begin, self.size)
        good = (index >= 0) & (index < self.valid.size) & (rest == 0)
        good[good] = self.valid[index[good]]
        setattr(self.argument, kind, getattr(self.argument, kind) + addresses.size * self.size)
        self.seen[kind][index[good]] = True
        return int((~good).sum())

    def finish(self) -> None:
        self.argument.distinct_loaded += int(self.seen["loaded"].sum()) * self.size
        self.argument.distinct_stored += int(self.seen["stored"].sum()) * self.size


@contextmanager
def watch_traffic(*reached: Tensor) -> Iterator[Traffic]:
    """Count what every launch inside asks of each of its tensors, as "kernel.argument".

    Kernels may also find the `reached` tensors, by their addresses. An access belongs to the tensor whose view holds
    its middle address.
    """
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor._init_args_hst
    traffic, views = Traffic(), []
    by_address = [_View(x, traffic.arguments.setdefault("by address", Argument())) for x in reached if x.numel()]

    def close() -> None:
        for view in views:
            view.finish()
        views.clear()

    def start(self, args, kwargs):
        close()
        given, named = call(self, args, kwargs)
        for name, value in [*zip(self.arg_names, given, strict=False), *named.items()]:
            if isinstance(value, Tensor) and value.numel():
                argument = traffic.arguments.setdefault(f"{self.fn.__name__}.{name}", Argument())
                views.append(_View(value, argument))
        return given, named

    def note(pointers, mask, kind: str) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64).ravel()
        if not addresses.size:
            return
        middle = int(np.sort(addresses)[addresses.size // 2])
        owner = next((view for view in (*views, *by_address) if view.holds(middle)), None)
        traffic.outside += addresses.size if owner is None else owner.note(addresses, kind)

    def watched_load(self, pointers, mask, *rest):
        note(pointers, mask, "loaded")
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        note(pointers, mask, "stored")
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    executor._init_args_hst = start
    try:
        yield traffic
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        executor._init_args_hst = call
        views += by_address
        close()
