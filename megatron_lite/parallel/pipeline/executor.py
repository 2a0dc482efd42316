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
from torch.autograd.graph import GradientEdge, get_gradient_edge

from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.labels import label
from megatron_lite.parallel.pipeline.messages import Edges, Mail, Message
from megatron_lite.parallel.pipeline.routes import (
    Direction,
    Key,
    needed_by,
    received_on,
    result_of,
    sent_on,
    stays,
)
from megatron_lite.parallel.pipeline.schedules import Action
from megatron_lite.parallel.pipeline.stage import End, Stage, Unit
from megatron_lite.parallel.walk import Use, Walk, plan_turns
from megatron_lite.parallel.weights import deferring
from megatron_lite.parallel.zero import Policy, TrainedShards

Queue = list[Callable[[], None]]
Output = tuple[tuple[Tensor] | tuple[GradientEdge], Tensor | None] | None


def units_of(stage: Stage, action: Action) -> Iterator[Unit]:
    """The units that an action runs, in its order."""
    units = stage.chunks[action.chunk]
    return iter(units) if action.kind == "F" else reversed(units)


def uses_of(stage: Stage, actions: Sequence[Action]) -> list[Use]:
    """Every unit's turn in a step, in order. W needs no weights; I leaves no finished gradients, nor do frozen ones."""
    return [
        Use(
            needs=() if action.kind == "W" else unit.shards,
            leaves=_trained(unit) if action.kind in "BW" else (),
        )
        for action in actions
        for unit in units_of(stage, action)
    ]


def _trained(unit: Unit) -> tuple[TrainedShards, ...]:
    return tuple(shards for shards in unit.shards if isinstance(shards, TrainedShards))


class Executor:
    """One stage's step: run every action, leave every gradient summed over the zero axis in its shard."""

    def __init__(self, stage: Stage, actions: Sequence[Action], policy: Policy, edges: Edges,
                 recorder: Recorder | None = None):  # fmt: skip
        self.stage, self.actions, self.edges, self.recorder = stage, tuple(actions), edges, recorder
        self.turns = plan_turns(uses_of(stage, self.actions), policy)
        self.keeps = any(action.kind != "F" for action in self.actions)

    def run(self, batches: Sequence[Any], messages: Sequence[Message]) -> list[Any]:
        """What the model's end made of each microbatch, in order; nothing where it lies on another stage.

        `batches[m]` is microbatch m, `messages[m]` what passes between stages of it.
        """
        step = _Step(self, batches, messages)
        run = {"F": step.forward, "B": step.backward, "I": step.input_backward, "W": step.weight_backward}
        for action in self.actions:
            if self.recorder is not None:
                self.recorder.phase = str(action)
            run[action.kind](action)
        return step.finish()


class _Step:
    """What one step holds of a stage.

    at_hand  results for another chunk of this stage
    saved    a forward -> each unit's input and output
    queued   an input backward -> each unit's weight gradients, last unit first
    made     by microbatch, where the model ends here
    """

    def __init__(self, executor: Executor, batches: Sequence[Any], messages: Sequence[Message]):
        self.stage, self.edges, self.keeps = executor.stage, executor.edges, executor.keeps
        self.batches = batches
        self.begin = torch.zeros((), dtype=messages[0].dtype, device=messages[0].device)  # what the first unit is given
        self.walk = Walk(executor.turns)
        self.mail = Mail(self.edges, executor.actions, messages)
        self.at_hand: dict[Key, Tensor] = {}
        self.saved: dict[Key, list[tuple[Tensor, Output]]] = {}
        self.queued: dict[Key, list[Queue]] = {}
        self.made: dict[int, Any] = {}

    def finish(self) -> list[Any]:
        self.walk.finish()
        self.mail.finish()
        return [made for _, made in sorted(self.made.items())]

    def forward(self, action: Action) -> None:
        batch = self.batches[action.microbatch]
        x = self._take(action)
        x = self.begin if x is None else x
        saved, ended = [], False
        for unit in units_of(self.stage, action):
            with label(action, unit.shards[0].name):
                self.walk.enter()
                x = x.detach().requires_grad_(self.keeps)
                with torch.set_grad_enabled(self.keeps and unit.recompute != "full"):
                    y = unit.forward(x, batch)
                if self.keeps:
                    saved.append((x, _output(y)))
                if isinstance(y, End):
                    self.made[action.microbatch], ended = y.made, True
                else:
                    x = y
                self.walk.leave()
        if self.keeps:
            self.saved[self._key("forward", action)] = saved
        if not ended:
            self._hand_on(action, x.detach())

    def backward(self, action: Action) -> None:
        self._walk_back(action, queues=None)

    def input_backward(self, action: Action) -> None:
        queues: list[Queue] = []
        self.queued[self._key("backward", action)] = queues
        self._walk_back(action, queues)

    @torch.no_grad()
    def weight_backward(self, action: Action) -> None:
        queues = self.queued.pop(self._key("backward", action))
        for unit in units_of(self.stage, action):
            with label(action, unit.shards[0].name):
                self.walk.enter()
                _run(queues.pop(0))  # what it kept is freed
                self.walk.leave()

    def _walk_back(self, action: Action, queues: list[Queue] | None) -> None:
        saved = self.saved.pop(self._key("forward", action))
        gradient = self._take(action)
        for unit in units_of(self.stage, action):
            with label(action, unit.shards[0].name):
                self.walk.enter()
                queue: Queue | None = None if queues is None else []
                gradient = _unit_backward(unit, saved.pop(), gradient, self.batches[action.microbatch], queue)
                if queues is not None and queue is not None:
                    queues.append(queue)
                self.walk.leave()
        self._hand_on(action, gradient)

    def _key(self, direction: Direction, action: Action) -> Key:
        return Key(direction, self.edges.stage, action.chunk, action.microbatch)

    def _take(self, action: Action) -> Tensor | None:
        """The action's input, from another stage or another chunk of this one; None at the model's ends."""
        needed = needed_by(action, self.edges.placement, self.edges.stage)
        if needed is None:
            return None
        channel = received_on(action, self.edges.placement, self.edges.stage)
        return self.at_hand.pop(needed) if channel is None else self.mail.take(channel)

    def _hand_on(self, action: Action, result: Tensor | None) -> None:
        """Give the action's result to whoever takes it; nobody does at the model's ends, where there may be none."""
        place = (action, self.edges.placement, self.edges.stage)
        channel = sent_on(*place)
        if channel is None and not stays(*place):
            return
        assert result is not None  # the model's first unit alone has no input gradient
        if channel is not None:
            self.mail.put(channel, result)
        else:
            self.at_hand[result_of(action, self.edges.stage)] = result


def rehearse(unit: Unit, policy: Policy, batch: Any, message: Message) -> None:
    """One unit forward and backward by itself, on a zero input like a message; no other stage takes part."""
    walk = Walk(plan_turns([Use(unit.shards, ()), Use(unit.shards, _trained(unit))], policy))
    walk.enter()
    x = message.empty().zero_().requires_grad_()
    with torch.set_grad_enabled(unit.recompute != "full"):
        y = unit.forward(x, batch)
    saved, gradient = (x, _output(y)), None if isinstance(y, End) else torch.zeros_like(y)
    del y
    walk.leave()
    walk.enter()
    _unit_backward(unit, saved, gradient, batch, queue=None)
    walk.leave()
    walk.finish()


def _run(queue: Queue) -> None:
    for compute in queue:
        compute()


def _output(y: Tensor | End) -> Output:
    """Where backward begins, and with which gradient where the output itself knows it. None where the unit will be run
    again, or has no backward. The output's numbers live on as the next unit's input, or go with the message that
    carries them: what is kept is its place in the graph, and of a scalar, which costs nothing, itself.
    """
    root, gradient = (y.root, y.gradient) if isinstance(y, End) else (y, None)
    if not root.requires_grad:
        return None
    # A sequence of one: an edge by itself passes for a sequence in some versions.
    return ((root,) if root.dim() == 0 else (get_gradient_edge(root),)), gradient


def _unit_backward(
    unit: Unit, saved: tuple[Tensor, Output], gradient: Tensor | None, batch: Any, queue: Queue | None
) -> Tensor | None:
    """Autograd inside one unit: the gradient of its input. Weight gradients go into the weights, or into `queue`."""
    x, y = saved
    weights = [weight for shards in unit.shards for weight in shards.weights]
    if y is None:
        with torch.enable_grad():
            y = _output(unit.forward(x, batch))
    assert y is not None  # a unit that is trained has a backward
    roots, known = y
    with deferring(weights, queue):
        torch.autograd.backward(roots, (gradient if known is None else known,))
    return x.grad
