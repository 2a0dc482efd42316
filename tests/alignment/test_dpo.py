"""DPO's losses, numbers and gradients: by closed forms, and of each answer alone in a plain model."""

from dataclasses import fields, replace
from math import exp, log

import pytest
import torch
from support.layouts import Layout, assemble, build_trainer, distance, owned_blocks
from support.pairs import Document, Pair, log_probabilities, microbatch, microbatches, packed, pair, pairs_of, rows_of
from support.rows import together_and_apart
from torch import Tensor

from megatron_lite.alignment.dpo import Dpo
from megatron_lite.config.aligned import DpoConfig
from megatron_lite.model.outputs import Outputs
from megatron_lite.model.sequences import Sequences

KINDS = {
    "sigmoid": Dpo(beta=0.3),
    "ipo": Dpo(beta=0.4, kind="ipo"),
    "smoothed": Dpo(beta=0.3, label_smoothing=0.15),
    "smoothed ipo": Dpo(beta=2.0, kind="ipo", label_smoothing=0.15),
    "with nll": Dpo(beta=0.3, nll_weight=0.7),
    "by length": Dpo(beta=0.3, length_normalized=True),
    "all": Dpo(beta=0.7, kind="ipo", label_smoothing=0.1, nll_weight=0.4, length_normalized=True),
}
LAYOUT = Layout(layers=2, steps=1)


def plain(objective: Dpo, pairs: list[tuple[Pair, Tensor, Tensor]]) -> dict[str, Tensor]:
    """The numbers of pairs, given their trained tokens' log-probabilities, pair by pair as the papers write it."""
    losses, margins, of_chosen = [], [], torch.cat([chosen for _, chosen, _ in pairs])
    for one, chosen, rejected in pairs:
        ratios = chosen.sum() - one.chosen.reference, rejected.sum() - one.rejected.reference
        if objective.length_normalized:
            ratios = ratios[0] / len(chosen), ratios[1] / len(rejected)
        h = ratios[0] - ratios[1]
        if objective.kind == "ipo":
            right, wrong = (h - 0.5 / objective.beta) ** 2, (-h - 0.5 / objective.beta) ** 2
        else:
            right, wrong = -torch.sigmoid(objective.beta * h).log(), -torch.sigmoid(-objective.beta * h).log()
        losses.append((1 - objective.label_smoothing) * right + objective.label_smoothing * wrong)
        margins.append(objective.beta * h)
    margin, nll = torch.stack(margins), -of_chosen.mean()
    return {
        "loss": torch.stack(losses).mean() + objective.nll_weight * nll,
        "accuracy": (margin > 0).double().mean(), "margin": margin.mean(),
        "chosen_logprob": torch.stack([chosen.sum() for _, chosen, _ in pairs]).mean(),
        "rejected_logprob": torch.stack([rejected.sum() for *_, rejected in pairs]).mean(),
        "nll": nll,
    }  # fmt: skip


def outputs_of(sequences: Sequences, seed: int = 0) -> Outputs:
    """Made ones, 0 where a label does not count."""
    random = torch.rand(sequences.tokens.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    log_probability = torch.where(sequences.counted, -3 * random, 0.0).requires_grad_()
    return Outputs(log_probability, torch.zeros_like(log_probability))


def of_pairs(
    rows: list[list[Pair]], length: int, objective: Dpo, outputs: Outputs | None = None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, numbers, gradient of the log-probabilities [B, S]) of a step of one microbatch."""
    sequences = packed(rows, length)
    outputs = outputs or outputs_of(sequences)
    loss, numbers = objective.loss(outputs, sequences, objective.denominators(sequences))
    (gradient,) = torch.autograd.grad(loss, outputs.log_probability)
    return loss, numbers, gradient


def tokens(*ids: int, prompt: int, reference: float) -> Document:
    return Document(torch.tensor(ids), torch.arange(len(ids)) >= prompt, reference)


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_gradients_and_numbers_of_packed_pairs_are_those_of_each_answer_alone_in_a_plain_model(objective):
    trainer = build_trainer(replace(LAYOUT, objective=objective), batch=microbatch(0))
    begun = assemble([owned_blocks(trainer, "master")])
    weights = {name: torch.from_numpy(values).requires_grad_() for name, values in begun.items()}
    result = trainer.gradients(microbatches(0))
    model = trainer.config.model
    pairs = [
        (one, log_probabilities(weights, one.chosen, model), log_probabilities(weights, one.rejected, model))
        for one in pairs_of(0)
    ]
    expected = plain(objective, pairs)
    expected["loss"].backward()
    assert result.numbers.keys() == expected.keys()
    for name, number in result.numbers.items():
        assert number.item() == pytest.approx(expected[name].item(), rel=1e-11), name
    assert result.count == len(pairs)
    gradients = assemble([owned_blocks(trainer, "gradient")])
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in weights.items()}
    assert max(errors.values()) < 1e-10, errors


def test_a_pair_has_the_loss_and_the_gradient_of_the_papers_equation_7():
    chosen = tokens(5, 6, 7, 8, prompt=2, reference=-2.5)  # two trained tokens
    rejected = tokens(5, 6, 9, prompt=2, reference=-1.75)
    logs = torch.tensor([[0, -1.0, -0.5, 0, 0, -2.0, *[0] * 10]], dtype=torch.float64, requires_grad=True)
    rows = [[Pair(chosen, rejected, 0.0)]]
    loss, numbers, gradient = of_pairs(rows, 16, Dpo(beta=0.5), Outputs(logs, torch.zeros_like(logs)))
    h = (-1.5 + 2.5) - (-2.0 + 1.75)
    assert loss.item() == pytest.approx(log(1 + exp(-0.5 * h)), rel=1e-14)
    assert numbers["margin"].item() == pytest.approx(0.5 * h)
    assert (numbers["chosen_logprob"], numbers["rejected_logprob"], numbers["nll"]) == (-1.5, -2.0, 0.75)
    # Their gradient (section 4): beta times the share by which the pair is still judged wrongly.
    slope = 0.5 / (1 + exp(0.5 * h))
    assert gradient.tolist()[0] == pytest.approx([-slope] * 4 + [slope] * 3 + [0] * 9, rel=1e-14)


def test_a_pair_whose_halves_share_all_tokens_has_loss_log_2_and_leaves_every_weight_alone():
    same = pair(1).chosen
    rows = [[Pair(same, same, 0.0)]]
    gradient, length = of_pairs(rows, 24, Dpo())[2], len(same.tokens)
    trainer = build_trainer(replace(LAYOUT, objective=Dpo()), batch=microbatch(0))
    result = trainer.gradients([packed(rows, 24)])
    assert result.loss.item() == pytest.approx(log(2), rel=1e-14)
    assert abs(result.numbers["margin"].item()) < 1e-14
    assert (gradient[0, :length] == -gradient[0, length : 2 * length]).all()
    assert gradient[0, :length].abs().sum() > 0
    other = trainer.gradients([packed([[pair(1)]], 24)]).grad_norm.item()
    assert trainer.gradients([packed(rows, 24)]).grad_norm.item() < 1e-14 * other


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_padding_and_rows_without_a_pair_add_exactly_nothing(objective):
    rows = rows_of(1)
    loss, numbers, gradient = of_pairs(rows, 40, objective)
    bare = packed(rows, 40)
    longer = packed([*rows, []], 48)
    log_probability = torch.zeros(longer.tokens.shape, dtype=torch.float64)
    log_probability[:2, :40] = outputs_of(bare).log_probability.detach()
    log_probability.requires_grad_()
    given = Outputs(log_probability, torch.zeros_like(log_probability))
    other, others, wider = of_pairs([*rows, []], 48, objective, given)
    assert other == loss
    assert others == numbers
    assert (wider[:2, :40] == gradient).all()
    assert not wider[2].any()
    assert not wider[:, 40:].any()
    empty = bare.nothing()
    assert (objective.denominators(empty) == 0).all()
    share, parts = objective.loss(outputs_of(empty), empty, objective.denominators(bare))
    assert share == 0
    assert all(part == 0 for part in parts.values())


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_eight_pairs_in_one_microbatch_or_in_eight_give_the_same_gradient(objective):
    (numbers, gradients), (others, theirs) = together_and_apart(replace(LAYOUT, objective=objective))
    assert others == pytest.approx(numbers, rel=1e-12)
    assert max(distance(theirs[name], gradients[name]) for name in gradients) < 1e-11


def test_ipos_loss_is_least_where_the_margin_is_half():
    """beta h = 1/2 is where a pair is as far from its reference as equation 17 wants it."""
    objective = Dpo(beta=0.25, kind="ipo")
    h = torch.linspace(0, 4, 81, dtype=torch.float64)
    losses = objective.of_difference(h)
    assert objective.beta * h[losses.argmin()] == 0.5
    assert losses.min() == 0


def test_large_margins_neither_overflow_nor_lose_digits():
    h = torch.tensor([-2000.0, -60.0, 60.0, 2000.0], dtype=torch.float64, requires_grad=True)
    losses = Dpo(beta=0.5).of_difference(h)
    (slopes,) = torch.autograd.grad(losses.sum(), h)
    assert losses.tolist() == pytest.approx([1000.0, 30 + exp(-30), exp(-30), 0.0], rel=1e-14)
    assert slopes.tolist() == pytest.approx([-0.5, -0.5, -0.5 * exp(-30), 0.0], rel=1e-12)


@pytest.mark.parametrize("key", [field for field in DpoConfig.model_fields if field != "reference"])
def test_every_key_of_the_section_reaches_the_loss(key):
    other = {"beta": 0.2, "loss": "ipo", "label_smoothing": 0.1, "nll_weight": 0.5, "length_normalized": True}[key]
    usual, changed = Dpo.of(DpoConfig()), Dpo.of(DpoConfig(**{key: other}))
    (name,) = (one.name for one in fields(Dpo) if getattr(usual, one.name) != getattr(changed, one.name))
    assert getattr(changed, name) == other
    losses = [of_pairs(rows_of(1), 40, objective)[0].item() for objective in (usual, changed)]
    assert losses[0] != losses[1]
