"""Activations and gradients between pipeline neighbours.

Each edge has a two-rank communicator for each direction, so messages of one communicator all go one way and arrive in
order. A receive is posted as soon as the one before it was taken; a send is waited for when the next goes out the same
way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.parallel.collectives import Communicator, Handle
from megatron_lite.parallel.pipeline.schedules import Action


@dataclass(frozen=True)
class Edges:
    """A stage's communicators to its neighbours, of two ranks each; None where the pipeline ends."""

    forward_previous: Communicator | None = None  # activations in
    forward_next: Communicator | None = None  # activations out
    backward_previous: Communicator | None = None  # gradients out
    backward_next: Communicator | None = None  # gradients in

    @property
    def first(self) -> bool:
        return self.forward_previous is None

    @property
    def last(self) -> bool:
        return self.forward_next is None


class Inbox:
    """Messages from one neighbour, one receive ahead. `expected` is how many come in the step."""

    def __init__(self, communicator: Communicator | None, expected: int, like: Tensor, site: str):
        self.communicator, self.site, self.like = communicator, site, like
        self.left = expected if communicator is not None else 0
        self.posted: Handle | None = None
        self._post()

    def take(self) -> Tensor:
        """The next message, in the order it was sent."""
        message = self.posted.wait()
        self._post()
        return message

    def _post(self) -> None:
        self.posted = None
        if self.left:
            self.left -= 1
            buffer = torch.empty_like(self.like)
            self.posted = self.communicator.receive(buffer, 1 - self.communicator.rank, self.site)


class Outbox:
    """Messages to one neighbour; one may be under way."""

    def __init__(self, communicator: Communicator | None, site: str):
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
    """A stage's four channels for one step, from the actions it will run. `like` has a message's shape and dtype."""

    def __init__(self, edges: Edges, actions: Sequence[Action], like: Tensor):
        forwards = sum(action.kind == "F" for action in actions)
        backwards = sum(action.kind in "BI" for action in actions)
        self.activations_in = Inbox(edges.forward_previous, forwards, like, "pipeline.activation")
        self.gradients_in = Inbox(edges.backward_next, backwards, like, "pipeline.gradient")
        self.activations_out = Outbox(edges.forward_next, "pipeline.activation")
        self.gradients_out = Outbox(edges.backward_previous, "pipeline.gradient")

    def finish(self) -> None:
        self.activations_out.flush()
        self.gradients_out.flush()
