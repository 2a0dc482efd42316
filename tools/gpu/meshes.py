"""A mesh whose messages are replaced: by local copies, for one rank of a large job; or led through the CPU.

Everything above the communicators is the program that trains.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor

from megatron_lite.mesh import Mesh
from megatron_lite.parallel.collectives import Communicator, Handle, ready


def with_communicators(mesh: Mesh, kind: type[Communicator], device: torch.device) -> Mesh:
    """The same mesh on a device, every communicator of more than one rank replaced by one of `kind`."""

    def instead(one: Communicator) -> Communicator:
        return kind(one.axis, one.ranks, one.rank, one.group, one.recorder) if one.size > 1 else one

    values = {field.name: getattr(mesh, field.name) for field in fields(mesh)}
    replaced = {name: instead(value) for name, value in values.items() if isinstance(value, Communicator)}
    channels = {channel: instead(one) for channel, one in mesh.edges.channels.items()}
    return replace(mesh, device=device, edges=replace(mesh.edges, channels=channels), **replaced)


class Local(Communicator):
    """Of a job that nobody else is in: results of the right size, made of this rank's own numbers, so that they stay
    finite. It writes what a message would bring, and takes no time beside that.
    """

    def all_gather(self, shard: Tensor, site: str) -> Handle:
        return ready(shard.repeat(self.size, *[1] * (shard.dim() - 1)))

    def reduce_scatter(self, full: Tensor, site: str) -> Handle:
        return ready(full[: full.shape[0] // self.size].clone())

    def all_reduce(self, tensor: Tensor, site: str) -> Handle:
        return ready(tensor)

    def send(self, tensor: Tensor, peer: int, site: str) -> Handle:
        return ready(tensor)

    def receive(self, buffer: Tensor, peer: int, site: str) -> Handle:
        return ready(buffer.normal_())

    def all_to_all(self, parts: Tensor, site: str) -> Handle:
        return ready(parts.clone())

    def exchange(self, tensor: Tensor, to: int, source: int, site: str) -> Handle:
        return ready(tensor.clone())


class Staged(Communicator):
    """Through the CPU, for ranks that share a GPU: gloo carries copies, and a wait brings the result back."""

    def all_gather(self, shard: Tensor, site: str) -> Handle:
        return Returning(super().all_gather(shard.cpu(), site), shard.device)

    def reduce_scatter(self, full: Tensor, site: str) -> Handle:
        return Returning(super().reduce_scatter(full.cpu(), site), full.device)

    def all_to_all(self, parts: Tensor, site: str) -> Handle:
        return Returning(super().all_to_all(parts.cpu(), site), parts.device)

    def exchange(self, tensor: Tensor, to: int, source: int, site: str) -> Handle:
        return Returning(super().exchange(tensor.cpu(), to, source, site), tensor.device)

    def send(self, tensor: Tensor, peer: int, site: str) -> Handle:
        return super().send(tensor.cpu(), peer, site)

    def all_reduce(self, tensor: Tensor, site: str) -> Handle:
        return Returning(super().all_reduce(tensor.cpu(), site), tensor.device, tensor)

    def receive(self, buffer: Tensor, peer: int, site: str) -> Handle:
        empty = torch.empty(buffer.shape, dtype=buffer.dtype)
        return Returning(super().receive(empty, peer, site), buffer.device, buffer)


class Returning(Handle):
    """A handle on the CPU whose result goes to a device: into `target` where an operation writes in place."""

    def __init__(self, inner: Handle, device: torch.device, target: Tensor | None = None):
        super().__init__(inner, target if target is not None else inner.result)
        self.device, self.target = device, target

    def wait(self) -> Tensor:
        if self.work is not None:
            arrived, self.work = self.work.wait(), None
            self.result = arrived.to(self.device) if self.target is None else self.target.copy_(arrived)
        return self.result
