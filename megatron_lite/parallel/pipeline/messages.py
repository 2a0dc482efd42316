"""Activations and gradients between pipeline neighbours.

Each channel has a two-rank communicator of its own, so messages of one communicator all go one way and arrive in order.
A receive is posted as soon as the one before it was taken; a send is waited for when the next goes out on its channel.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.parallel.collectives import Communicator, Handle
from megatron_lite.parallel.pipeline.routes import Channel, received_on
from megatron_lite.parallel.pipeline.schedules import Action, Placement


@dataclass(frozen=True)
class Message:
    """What passes between stages for one microbatch; both ends know it beforehand."""

    size: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        return torch.empty(self.size, dtype=self.dtype, device=self.device)


SITE = {"forward": "pipeline.activation", "backward": "pipeline.gradient"}


@dataclass(frozen=True)
class Edges:
    """A stage among its pipeline: where the virtual stages lie, and a communicator for each channel that ends here."""

    placement: Placement
    stage: int
    channels: Mapping[Channel, Communicator]


class Inbox:
    """Messages of one channel, one receive ahead. `expected` are those that come in the step, in order."""

    def __init__(self, communicator: Communicator, expected: Sequence[Message], site: str):
        self.communicator, self.site = communicator, site
        self.left = deque(expected)
        self.posted: Handle | None = None
        self._post()

    def take(self) -> Tensor:
        """The next message, in the order it was sent."""
        assert self.posted is not None  # the schedule says how many come
        message = self.posted.wait()
        self._post()
        return message

    def _post(self) -> None:
        self.posted = None
        if self.left:
            buffer = self.left.popleft().empty()
            self.posted = self.communicator.receive(buffer, 1 - self.communicator.rank, self.site)


class Outbox:
    """Messages of one channel; one may be under way."""

    def __init__(self, communicator: Communicator, site: str):
        self.communicator, self.site = communicator, site
        self.sent: Handle | None = None

    def put(self, message: Tensor) -> None:
        self.flush()
        self.sent = self.communicator.send(message.contiguous(), 1 - self.communicator.rank, self.site)

    def flush(self) -> None:
        if self.sent is not None:
            self.sent.wait()
            self.sent = None


class Mail:
    """A stage's channels for one step, from the actions it will run. `messages[m]` is what microbatch m passes on."""

    def __init__(self, edges: Edges, actions: Sequence[Action], messages: Sequence[Message]):
        coming: dict[Channel | None, list[Message]] = defaultdict(list)
        for action in actions:
            coming[received_on(action, edges.placement, edges.stage)].append(messages[action.microbatch])
        self.inboxes: dict[Channel, Inbox] = {}
        self.outboxes: dict[Channel, Outbox] = {}
        for channel, communicator in edges.channels.items():
            site = SITE[channel.direction]
            if channel.receiver == edges.stage:
                self.inboxes[channel] = Inbox(communicator, coming[channel], site)
            else:
                self.outboxes[channel] = Outbox(communicator, site)

    def take(self, channel: Channel) -> Tensor:
        return self.inboxes[channel].take()

    def put(self, channel: Channel, message: Tensor) -> None:
        self.outboxes[channel].put(message)

    def finish(self) -> None:
        for outbox in self.outboxes.values():
            outbox.flush()
