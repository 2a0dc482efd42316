"""Objectives that are no pretraining, on layouts, against a plain PyTorch model's logits and autograd."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from nccl_replay import replay
from support.layouts import Blocks, Layout, assemble, build_trainer, distance, global_batch, owned_blocks
from support.objectives import Explore, Preference, Weighted
from support.reference import logits as plain_logits

from megatron_lite.model.objective import CrossEntropy, Objective
from megatron_lite.model.outputs import Outputs, stacked
from megatron_lite.model.sequences import Sequences
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.training.boundaries import microbatches_of

TOLERANCE = 1e-10
ALL = Layout(tensor=2, pipeline=2, context=2, schedule="zb_h1")
LAYOUTS = [
    Layout(),
    Layout(loss_chunk=5),
    replace(ALL, loss_chunk=5),
    ALL,
    Layout(tensor=2, pipeline=2, data=2, loss_chunk=3, tied=True),
    Layout(pipeline=2, context=2, context_kind="ulysses", sequence=False, schedule="zb_v", virtual_stages=2),
    Layout(tensor=2, data=2, loss_chunk=7, zero_stage=2, recompute="full"),
]


def unequal(config) -> torch.Tensor:
    """Samples [B, S + 1] that end where they will, the rest -1."""
    samples = global_batch(1, config)
    for row, sample in enumerate(samples):
        sample[5 + row :] = -1
    return samples


@dataclass
class Found:
    """Of one rank: its blocks, the numbers that the step reports, its outputs where the model ends, its transcript."""

    gradients: Blocks
    weights: Blocks
    numbers: dict[str, float]
    outputs: list[np.ndarray]
    place: tuple[int, int, int]  # data, tensor, context
    events: list[Event]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    config = layout.config(micro_batch_size=2)
    trainer = build_trainer(layout, recorder, config)
    coordinate = trainer.mesh.coordinate
    samples = unequal(config).chunk(trainer.resolved.data)[coordinate["data"]]
    batches = microbatches_of(samples, config)
    outputs = [stacked(one) for one in trainer.model.outputs(batches, trainer.objective)]
    result = trainer.gradients(batches)
    return Found(
        owned_blocks(trainer, "gradient"),
        owned_blocks(trainer, "master"),
        {name: value.item() for name, value in result.numbers.items()},
        [] if not outputs else list(torch.cat(outputs, 1).numpy()),
        tuple(coordinate[axis] for axis in ("data", "tensor", "context")),
        recorder.events,
    )


def on_layout(ranks, layout: Layout, objective: Objective) -> list[Found]:
    layout = replace(layout, objective=objective)
    return [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)


def plain(
    found: list[Found], layout: Layout
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights, logits, labels, tokens) of the same samples in a plain model that begins with the same weights."""
    config = layout.config()
    weights = {
        name: torch.from_numpy(value).requires_grad_()
        for name, value in assemble([rank.weights for rank in found]).items()
    }
    samples = unequal(config)
    tokens, labels = samples[:, :-1], samples[:, 1:]
    # What comes after a sequence's end is seen by nothing that counts.
    return weights, plain_logits(weights, tokens.clamp(min=0), config.model), labels, tokens


OBJECTIVES = [
    Weighted(0.01, knows=True),
    Weighted(0.01, knows=False, temperature=1.7),
    Weighted(0.0, knows=True, temperature=0.6),
    Preference(),
    Explore(),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["weighted", "two-pass", "temperature", "preference", "entropy"])
def test_an_objectives_gradients_and_numbers_are_those_of_a_plain_model(ranks, layout, objective):
    found = on_layout(ranks, layout, objective)
    weights, logits, labels, tokens = plain(found, layout)
    loss, numbers = objective.plain(logits, labels, tokens)
    loss.backward()
    gradients = assemble([rank.gradients for rank in found])
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in weights.items()}
    assert max(errors.values()) < TOLERANCE, errors
    for rank in found:
        assert rank.numbers == pytest.approx(numbers, rel=TOLERANCE)
    if layout.world > 1:
        replay([rank.events for rank in found])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_forward_pass_alone_gives_every_tokens_log_probability_and_entropy_where_the_model_ends(ranks, layout):
    objective = Explore()
    found = on_layout(ranks, layout, objective)
    _, logits, labels, _ = plain(found, layout)
    logits = logits / objective.temperature
    logs = logits.log_softmax(-1)
    of_label = logs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    right = [of_label, logits.logsumexp(-1), -(logs.exp() * logs).sum(-1), (logits.argmax(-1) == labels).double()]
    counted = labels >= 0
    ends = [rank for rank in found if rank.outputs]
    assert len(ends) == layout.world // layout.pipeline
    for rank in ends:
        mine = slice(*(np.array([0, 1]) + rank.place[0]) * (len(labels) // layout.data))
        for ours, expected in zip(rank.outputs, right, strict=True):
            difference = (torch.from_numpy(ours) - expected[mine])[counted[mine]]
            assert difference.abs().max() < TOLERANCE * expected.abs().max()
        assert (torch.from_numpy(rank.outputs[0])[~counted[mine]] == 0).all()


@pytest.mark.parametrize("objective", [CrossEntropy(0.01), *OBJECTIVES[:1]], ids=["pretraining", "weighted"])
def test_what_an_objective_says_beforehand_adds_up_to_its_loss(objective):
    samples = unequal(Layout().config())
    tokens, labels = samples[:, :-1], samples[:, 1:]
    sequences = Sequences(tokens, labels, vocab_size=61)
    numbers = torch.randn(2, *labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = Outputs(numbers[0].where(sequences.counted, 0.0), numbers[1])
    denominators = 3 * objective.denominators(sequences)
    of_loss, of_square = objective.token_weights(sequences, denominators)
    expected = (of_square * outputs.log_sum.square() - of_loss * outputs.log_probability).sum()
    loss, _ = objective.loss(outputs, sequences, denominators)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
