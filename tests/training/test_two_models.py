"""Two models on one mesh, one after the other through the same channels: a policy that is trained, a reference that is
frozen, and a judge of another shape.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from nccl_replay import replay
from support.layouts import (
    Blocks,
    Layout,
    assemble,
    build_trainer,
    distance,
    global_batch,
    my_batches,
    owned_blocks,
    reshaped,
)
from support.paper import memory_form, wide_config
from support.reference import hidden
from support.reference import logits as plain_logits
from torch import Tensor

from megatron_lite.config import Config, resolve
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.outputs import Outputs, Values
from megatron_lite.model.sequences import Column, Sequences
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.statistics import LOSS, Statistics
from megatron_lite.planning.memory import StorageTracker

LAYOUTS = [
    Layout(),
    Layout(tensor=2, pipeline=2, data=2),
    Layout(tensor=2, pipeline=2, schedule="zb_h1", loss_chunk=5, sequence=False),
    Layout(pipeline=2, context=2, schedule="zb_v", virtual_stages=2, zero_stage=2, zero_regather="step"),
]


@dataclass(frozen=True)
class AgainstReference:
    """-log sigmoid of how much likelier than its reference the policy finds a sequence, weighed by a judge's value at
    its last token.
    """

    temperature: ClassVar[float] = 1.0
    statistics: ClassVar[Statistics] = LOSS
    sums: ClassVar[tuple[str, ...]] = ("loss",)
    maxima: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = (
        Column("reference", "token", torch.float64),
        Column("value", "token", torch.float64),
    )

    def denominators(self, sequences: Sequences) -> Tensor:
        return torch.tensor([len(sequences.tokens)], dtype=torch.float64)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> None:
        return None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        more = (outputs.log_probability - sequences.columns["reference"]).sum(1)
        loss = -(sequences.columns["value"][:, -1] * F.logsigmoid(more)).sum() / denominators[0]
        return loss, {"loss": loss.detach()}


@dataclass(frozen=True)
class Ask:
    """Nothing is descended: for a model with a scalar head that is only asked."""

    sums: ClassVar[tuple[str, ...]] = ()
    maxima: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def loss(self, outputs: Values, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return outputs.value.sum(), {}


def judge_config(layout: Layout) -> Config:
    config = replace(layout, layers=6, stage_layers=None).config(seed=11)
    return reshaped(config, hidden_size=24, num_attention_heads=2, head="scalar")


@dataclass
class Found:
    """Of one rank: weights of the three, the policy's gradients, loss."""

    weights: list[Blocks]
    gradients: Blocks
    loss: float
    events: list[Event]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    batch = my_batches_of_first(layout)
    trainer = build_trainer(layout, recorder, batch=batch)
    mesh, schedule = trainer.mesh, trainer.model.schedule
    of_reference, of_judge = layout.config(seed=9), judge_config(layout)
    reference, judge = (
        Model(config, resolve(config, layout.world), mesh, schedule, recorder, trainable=NOTHING)
        for config in (of_reference, of_judge)
    )
    batches = my_batches(trainer, 1)
    likely, values = reference.outputs(batches, CrossEntropy()), judge.outputs(batches, Ask())
    if mesh.has_head:
        batches = [
            replace(one, columns={"reference": log.log_probability, "value": value.value})
            for one, log, value in zip(batches, likely, values, strict=True)
        ]
    result = trainer.gradients(batches)
    weights = [owned_blocks(trainer, "values", model.stage.shards) for model in (trainer.model, reference, judge)]
    return Found(weights, owned_blocks(trainer, "gradient"), result.loss.item(), recorder.events)


def my_batches_of_first(layout: Layout) -> Sequences:
    """One microbatch with the columns, for the rehearsal."""
    zeros = torch.zeros(1, 16, dtype=torch.int64)
    columns = {name: torch.zeros(1, 16, dtype=torch.float64) for name in ("reference", "value")}
    return Sequences(zeros, zeros, layout.config().model.vocab_size, columns=columns)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_policy_learns_against_a_frozen_reference_and_a_judge_of_another_shape(ranks, layout):
    layout = replace(layout, objective=AgainstReference())
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    policy, reference, judge = (
        {name: torch.from_numpy(w) for name, w in assemble([rank.weights[which] for rank in found]).items()}
        for which in range(3)
    )
    for weight in policy.values():
        weight.requires_grad_()
    samples, model = global_batch(1, layout.config()), layout.config().model
    tokens, labels = samples[:, :-1], samples[:, 1:].unsqueeze(-1)
    logs = [
        plain_logits(weights, tokens, model).log_softmax(-1).gather(-1, labels).squeeze(-1).sum(1)
        for weights in (policy, reference)
    ]
    value = (hidden(judge, tokens, judge_config(layout).model) @ judge["score.weight"].T)[:, -1, 0]
    loss = (value * torch.log1p(torch.exp(-(logs[0] - logs[1])))).mean()
    loss.backward()
    gradients = assemble([rank.gradients for rank in found])
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in policy.items()}
    assert max(errors.values()) < 1e-10, errors
    assert all(rank.loss == pytest.approx(loss.item(), rel=1e-10) for rank in found)
    if layout.world > 1:
        replay([rank.events for rank in found])


def peak_of_two(layout: Layout) -> tuple[int, int, int]:
    """(stage, peak bytes, state bytes) on this rank: the reference is asked, then the policy takes a step."""
    config, tracker = wide_config(layout), StorageTracker(torch.device("cpu"))
    with tracker:
        trainer = build_trainer(layout, config=config)
        reference = Model(config, trainer.resolved, trainer.mesh, trainable=NOTHING)
        state = tracker.live
        reference.forward(my_batches(trainer, 1), CrossEntropy())
        trainer.train_step(my_batches(trainer, 1), learning_rate=1e-3)
    return trainer.mesh.stage, tracker.peak, state


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, pipeline=2, data=2)], ids=str)
def test_the_memory_of_a_policy_and_its_frozen_reference_is_that_of_the_closed_forms(ranks, layout):
    layout = replace(layout, dtype="float32")
    config = wide_config(layout)
    found = [peak_of_two(layout)] if layout.world == 1 else ranks.run(peak_of_two, layout.world, layout)
    for stage, peak, state in found[layout.tensor - 1 :: layout.tensor]:  # the last tensor rank has the padding
        policy = memory_form(config, layout.world, stage)
        reference = memory_form(config, layout.world, stage, NOTHING, asked=True)
        assert state == pytest.approx(policy.state + reference.state, rel=0.01)
        assert policy.state == pytest.approx(4 * reference.state, rel=0.01)  # master, gradient and two moments
        fullest = max(policy.total + reference.state, reference.total + policy.state)
        assert peak == pytest.approx(fullest, rel=0.02)
