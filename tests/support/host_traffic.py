"""What makes the host wait for the device, seen without a device: a step on meta tensors, operation by operation.

Meta tensors stand for the device's and CPU tensors for the host's, so a copy between the two is one here too. What
hides inside a kernel's launcher is not seen: on meta tensors its fake form runs in its place.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from support.layouts import END_OF_DOCUMENT, Layout, build_trainer, global_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_lite
from megatron_lite.planning.paper import choice_on_paper, fake_world
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.token_feed import with_draws

PACKAGE = Path(megatron_lite.__file__).parent
# Numbers read back; results whose size is known when the data is; and indexing, where a mask among the indices is both.
READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZED_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
SIZED_BY_DATA |= {"repeat_interleave"}  # of repeats in a tensor
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class HostTraffic(TorchDispatchMode):
    """Collects in `found`, as `operation at file:line`, what copies between host and device or waits for a result."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name, named = function._schema.name.removeprefix("aten::"), named or {}
        if name in READS | SIZED_BY_DATA or (name in INDEXING and any(map(_is_mask, arguments[1]))):
            self._note(name)
        if name in READS and arguments[0].is_meta:
            return 1  # it has no number to give
        devices = {tensor.device.type for tensor in _tensors((arguments, named))}
        if name == "_to_copy" and named.get("device") is not None:
            devices.add(named["device"].type)
        if len(devices) > 1:
            self._note(f"{name} between {' and '.join(sorted(devices))}")
        return function(*arguments, **named)

    def _note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        where = f" at {Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else ""
        self.found.append(what + where)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def traffic_of(layout: Layout, rank: int, backend: str = "auto") -> list[str]:
    """What `rank` does in a training step of a few microbatches of a layout, from samples that are on the device."""
    microbatches = max(2, layout.pipeline)
    config = layout.config(global_batch_size=microbatches * layout.data)
    config = config.model_copy(update={"kernels": config.kernels.model_copy(update={"backend": backend})})
    with fake_world(rank, layout.world), HostTraffic() as traffic:
        trainer = build_trainer(layout, config=config, device="meta", choice=choice_on_paper(config))
        samples = global_batch(1, config)[:microbatches].to("meta")
        traffic.found.clear()
        batches = microbatches_of(samples, config, END_OF_DOCUMENT)
        trainer.train_step(with_draws(batches, 1, 0) if config.draws else batches, learning_rate=1e-3)
    return traffic.found
