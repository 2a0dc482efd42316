"""Runs one stage's actions. Both passes are walks over the stage's units, written out.

Forward, for each unit: wait for its weights, start gathering the next unit's, run it on a detached input, release.
Backward, for each unit in reverse: the same, running autograd inside that one unit, then start reducing its gradients.
The units of a step and their order are known beforehand (`uses_of`), so gathers, releases and reductions are planned,
not triggered. A split backward runs autograd in I, where products queue their weight gradients, and the queue in W.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.pipeline.messages import Edges, Mail
from megatron_lite.parallel.pipeline.schedules import Action
from megatron_lite.parallel.pipeline.stage import Stage, Unit
from megatron_lite.parallel.zero import Policy, Use, Walk, plan_turns

Queue = list[Callable[[], None]]


def units_of(stage: Stage, action: Action) -> Iterator[Unit]:
    """The units that an action runs, in its order."""
    return iter(stage.units) if action.kind == "F" else reversed(stage.units)


def uses_of(stage: Stage, actions: Sequence[Action]) -> list[Use]:
    """Every unit's turn in a step, in order. W needs no weights; I leaves no finished gradients."""
    return [
        Use(
            needs=() if action.kind == "W" else unit.shards,
            leaves=unit.shards if action.kind in "BW" else (),
        )
        for action in actions
        for unit in units_of(stage, action)
    ]


class Executor:
    """One stage's step: run every action, leave every gradient summed over the zero axis in its shard."""

    def __init__(self, stage: Stage, actions: Sequence[Action], rule: Policy, edges: Edges,
                 recorder: Recorder | None = None):  # fmt: skip
        self.stage, self.actions, self.edges, self.recorder = stage, tuple(actions), edges, recorder
        self.turns = plan_turns(uses_of(stage, self.actions), rule)

    def run(self, batches: Sequence[Any], like: Tensor) -> None:
        """`batches[m]` is microbatch m; `like` has the shape and dtype of what passes between stages."""
        self.batches, self.like = batches, like
        self.walk = Walk(self.turns)
        self.mail = Mail(self.edges, self.actions, like)
        self.saved: dict[int, list[tuple[Tensor, Tensor]]] = {}  # microbatch -> each unit's (input, output)
        self.queued: dict[int, list[Queue]] = {}  # microbatch -> each unit's weight gradients, last unit first
        self.keeps = any(action.kind != "F" for action in self.actions)
        run = {"F": self._forward, "B": self._backward, "I": self._input_backward, "W": self._weight_backward}
        for action in self.actions:
            if self.recorder is not None:
                self.recorder.phase = str(action)
            run[action.kind](action.microbatch)
        self.walk.finish()
        self.mail.finish()

    def _forward(self, microbatch: int) -> None:
        batch = self.batches[microbatch]
        x = self.mail.activations_in.take() if not self.edges.first else self.like.new_zeros(())
        saved = []
        for unit in self.stage.units:
            self.walk.enter()
            x = x.detach().requires_grad_(self.keeps)
            with torch.set_grad_enabled(self.keeps and unit.recompute != "full"):
                y = unit.forward(x, batch)
            saved.append((x, y))
            x = y
            self.walk.leave()
        if self.keeps:
            self.saved[microbatch] = saved
        if not self.edges.last:
            self.mail.activations_out.put(x.detach())

    def _backward(self, microbatch: int) -> None:
        self._walk_back(microbatch, queues=None)

    def _input_backward(self, microbatch: int) -> None:
        self.queued[microbatch] = []
        self._walk_back(microbatch, self.queued[microbatch])

    @torch.no_grad()
    def _weight_backward(self, microbatch: int) -> None:
        for queue in self.queued.pop(microbatch):
            self.walk.enter()
            for compute in queue:
                compute()
            self.walk.leave()

    def _walk_back(self, microbatch: int, queues: list[Queue] | None) -> None:
        saved = self.saved.pop(microbatch)
        gradient = None if self.edges.last else self.mail.gradients_in.take()
        for unit in reversed(self.stage.units):
            self.walk.enter()
            x, y = saved.pop()
            queue = None if queues is None else []
            gradient = _unit_backward(unit, x, y, gradient, self.batches[microbatch], queue)
            if queues is not None:
                queues.append(queue)
            self.walk.leave()
        if not self.edges.first:
            self.mail.gradients_out.put(gradient)


def _unit_backward(
    unit: Unit, x: Tensor, y: Tensor, gradient: Tensor | None, batch: Any, queue: Queue | None
) -> Tensor | None:
    """Autograd inside one unit: the gradient of its input. Weight gradients go into the weights, or into `queue`."""
    weights = [weight for shards in unit.shards for weight in shards.weights]
    if unit.recompute == "full":
        with torch.enable_grad():
            y = unit.forward(x, batch)
    for weight in weights:
        weight.later = queue
    torch.autograd.backward(y, gradient)
    for weight in weights:
        weight.later = None
    return x.grad
