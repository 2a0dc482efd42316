"""What ranks tell each other around a step of a server: rank 0 who joins and who leaves, each replica what it wrote.

    rank 0:   orders -> all ranks -> each its replica's step -> reports -> rank 0
    no one:   an empty order now and then, so that no rank waits longer than a message may take

All replicas go in step: an answer of any of them reaches rank 0 in the step that made it, and a step lasts as long as
the slowest one's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from pydantic import ConfigDict, TypeAdapter

from megatron_lite.inference.engine import Engine
from megatron_lite.inference.requests import Addition, Request
from megatron_lite.mesh import Mesh
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.words import LostRank, Words

HEARTBEAT = 5.0  # seconds between orders when there are none


@dataclass(frozen=True)
class Orders:
    """Before a step: (replica, request) of those that join, numbers of those that leave; `last` ends every rank."""

    joining: tuple[tuple[int, Request], ...] = ()
    leaving: tuple[int, ...] = ()
    last: bool = False


@dataclass(frozen=True)
class Report:
    """Of a replica after a step: what it wrote, sequences that wait and that run, blocks in their tables."""

    additions: tuple[Addition, ...] = ()
    waiting: int = 0
    running: int = 0
    blocks: int = 0


_numbers = ConfigDict(ser_json_inf_nan="constants")
ORDERS = TypeAdapter(tuple[Orders], config=_numbers)
REPORT = TypeAdapter(tuple[Report], config=_numbers)


@dataclass(frozen=True)
class Messages:
    """Of one mesh. One process sends none."""

    mesh: Mesh

    def orders(self, given: Orders) -> Orders:
        """Rank 0's, on every rank; what others give does not count. All ranks call it."""
        world = self.mesh.world
        if world.size == 1:
            return given
        said = b"" if world.rank or given == Orders() else ORDERS.dump_json((given,))
        size = self._sum(world, torch.tensor([len(said)]), "serve.size")
        if not size:
            return Orders()
        text = torch.zeros(int(size), dtype=torch.uint8)
        text[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else text[:0]
        return ORDERS.validate_json(bytes(self._sum(world, text, "serve.orders").numpy()))[0]

    def reports(self, mine: Report) -> list[Report]:
        """Of all replicas, in order. All ranks call it."""
        replicas, device = self.mesh.zero, self.mesh.device
        if replicas.size == 1:
            return [mine]
        said = torch.frombuffer(bytearray(REPORT.dump_json((mine,))), dtype=torch.uint8).to(device)
        size = torch.tensor([len(said)], device=device)
        sizes = replicas.all_gather(size, "serve.report_sizes").wait().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
        padded[: len(said)] = said
        texts = replicas.all_gather(padded, "serve.reports").wait().view(replicas.size, -1).cpu()
        found = [bytes(text[:count].numpy()) for text, count in zip(texts, sizes, strict=True)]
        return [REPORT.validate_json(text)[0] for text in found]

    def _sum(self, world: Communicator, tensor: torch.Tensor, site: str) -> torch.Tensor:
        """What the one rank says that does not say zeros."""
        return world.all_reduce(tensor.to(self.mesh.device), site).wait().cpu()


@dataclass
class Share:
    """This rank's part in its replica's running batch."""

    engine: Engine
    written: list[Addition] = field(default_factory=list)

    def step(self, orders: Orders) -> Report:
        replica = self.engine.model.mesh.zero.rank
        for number, request in orders.joining:
            if number == replica:
                self.engine.add(request, self.written.append)
        for request_number in orders.leaving:
            self.engine.cancel(request_number)
        self.engine.step()
        self.engine.completions.clear()  # all of them were told as they were written
        written, self.written[:] = tuple(self.written), []
        scheduler = self.engine.scheduler
        used = scheduler.sizes.blocks - scheduler.blocks.available
        return Report(written, scheduler.waiting, scheduler.running, used)


def follow(share: Share, messages: Messages, words: Words) -> None:
    """Every rank but 0, until the last order."""
    with one_reason(words):
        while not (orders := messages.orders(Orders())).last:
            messages.reports(share.step(orders))


@contextmanager
def one_reason(words: Words) -> Iterator[None]:
    """A rank whose message broke off because another is gone ends with that one's reason, where it has said one."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = words.failure() or f"another rank is gone without a word: {str(error).partition(chr(10))[0]}"
        raise LostRank(f"serve: {reason}") from error
