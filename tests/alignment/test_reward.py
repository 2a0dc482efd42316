"""A reward model's losses, numbers and gradients: by closed forms, and of each answer alone in a plain model."""

from dataclasses import fields, replace
from math import log

import pytest
import torch
from support.layouts import Layout, assemble, build_trainer, distance, owned_blocks, reshaped
from support.pairs import END, Document, Pair, microbatch, microbatches, packed, pair, pairs_of, rows_of, score
from support.rows import together_and_apart
from torch import Tensor

from megatron_lite.alignment.reward import BradleyTerry
from megatron_lite.config.aligned import RewardConfig
from megatron_lite.model.outputs import Values

KINDS = {
    "margins of rows": BradleyTerry(),
    "one margin": BradleyTerry(margin=0.75),
    "no margin": BradleyTerry(margin=0.0),
    "centred": BradleyTerry(centring=0.3),
}
LAYOUT = Layout(layers=2, steps=1, head="scalar")


def plain(objective: BradleyTerry, pairs: list[tuple[Pair, Tensor, Tensor]]) -> dict[str, Tensor]:
    """The numbers of pairs with their scores, pair by pair."""
    losses = [
        -torch.sigmoid(chosen - rejected - (one.margin if objective.margin is None else objective.margin)).log()
        + objective.centring * (chosen + rejected) ** 2
        for one, chosen, rejected in pairs
    ]
    chosen, rejected = (torch.stack([pair[place] for pair in pairs]) for place in (1, 2))
    scores = torch.cat([chosen, rejected])
    return {
        "loss": torch.stack(losses).mean(), "accuracy": (chosen > rejected).double().mean(),
        "margin": (chosen - rejected).mean(), "score": scores.mean(), "score_square": (scores**2).mean(),
    }  # fmt: skip


def of_values(values: Tensor, rows: list[list[Pair]], objective: BradleyTerry) -> tuple[dict[str, Tensor], Tensor]:
    """(numbers, gradient of the values [B, S]) of a step of one microbatch."""
    values = values.clone().requires_grad_()
    sequences = packed(rows, values.shape[1])
    loss, numbers = objective.loss(Values(values), sequences, objective.denominators(sequences))
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss == numbers["loss"]
    return numbers, gradient


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_gradients_and_numbers_of_packed_pairs_are_those_of_each_answer_alone_in_a_plain_model(objective):
    trainer = build_trainer(replace(LAYOUT, objective=objective), batch=microbatch(0))
    begun = assemble([owned_blocks(trainer, "master")])
    weights = {name: torch.from_numpy(values).requires_grad_() for name, values in begun.items()}
    result = trainer.gradients(microbatches(0))
    model = trainer.config.model
    pairs = [(one, score(weights, one.chosen, model), score(weights, one.rejected, model)) for one in pairs_of(0)]
    expected = plain(objective, pairs)
    expected["loss"].backward()
    assert result.numbers.keys() == expected.keys()
    for name, number in result.numbers.items():
        assert number.item() == pytest.approx(expected[name].item(), rel=1e-11), name
    gradients = assemble([owned_blocks(trainer, "gradient")])
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in weights.items()}
    assert max(errors.values()) < 1e-10, errors


def test_equal_scores_have_loss_log_2_and_count_as_wrong():
    numbers, gradient = of_values(torch.zeros(1, 24, dtype=torch.float64), [[pair(0)]], BradleyTerry(margin=0.0))
    assert numbers["loss"].item() == pytest.approx(log(2), rel=1e-15)
    assert numbers["accuracy"] == 0
    assert gradient.sum() == 0
    assert gradient.min() == -0.5


def test_a_score_is_read_at_the_last_token_by_length_though_padding_is_the_end_of_a_turn():
    """END stands within each prompt, ends each answer and fills the row up."""
    first = Document(torch.tensor([END, 5, END, 9, END]), torch.tensor([False] * 3 + [True] * 2), 0.0)
    second = Document(torch.tensor([END, 5, END, END]), torch.tensor([False] * 3 + [True]), 0.0)
    values = torch.arange(24, dtype=torch.float64).unsqueeze(0)
    numbers, gradient = of_values(values, [[Pair(first, second, 0.0)]], BradleyTerry())
    assert numbers["margin"] == 4 - 8
    assert numbers["score"] == (4 + 8) / 2
    assert gradient.nonzero().tolist() == [[0, 4], [0, 8]]


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_padding_and_rows_without_a_pair_add_exactly_nothing(objective):
    rows = rows_of(1)
    values = torch.randn(3, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers, gradient = of_values(values[:2, :40], rows, objective)
    others, wider = of_values(values, [*rows, []], objective)
    assert others == numbers
    assert (wider[:2, :40] == gradient).all()
    assert not wider[2].any()
    assert not wider[:, 40:].any()
    empty = packed(rows, 40).nothing()
    assert objective.denominators(empty) == 0
    share, parts = objective.loss(Values(values[:2, :40]), empty, objective.denominators(packed(rows, 40)))
    assert share == 0
    assert all(part == 0 for part in parts.values())


@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS)
def test_eight_pairs_in_one_microbatch_or_in_eight_give_the_same_gradient(objective):
    (numbers, gradients), (others, theirs) = together_and_apart(replace(LAYOUT, objective=objective))
    assert others == pytest.approx(numbers, rel=1e-12)
    assert max(distance(theirs[name], gradients[name]) for name in gradients) < 1e-11


def test_a_scalar_head_begins_with_deviation_1_of_hidden_size_and_one_more():
    """Of 512 numbers the deviation is right to 10%, three of its own."""
    config = reshaped(LAYOUT.config(), hidden_size=512, num_hidden_layers=1)
    trainer = build_trainer(replace(LAYOUT, objective=BradleyTerry()), config=config, batch=microbatch(0))
    score = assemble([owned_blocks(trainer, "master")])["score.weight"]
    assert score.shape == (1, 512)
    assert score.std() == pytest.approx(1 / 513, rel=0.1)
    assert abs(score.mean()) < 3 / 513 / 512**0.5


def test_the_column_of_margins_is_wanted_only_where_no_margin_is_given():
    sequences = packed(rows_of(0), 32)
    without = replace(sequences, columns={k: v for k, v in sequences.columns.items() if k != "margin"})
    model = build_trainer(replace(LAYOUT, objective=BradleyTerry()), batch=microbatch(0)).model
    with pytest.raises(ValueError, match="column margin is missing: the objective wants it for every document"):
        model.microbatches([without], BradleyTerry())
    assert len(model.microbatches([without], BradleyTerry(margin=0.0))) == 1


@pytest.mark.parametrize(("key", "value"), [("margin", 0.5), ("centring", 0.2)])
def test_every_key_of_the_section_reaches_the_loss(key, value):
    usual, changed = BradleyTerry.of(RewardConfig()), BradleyTerry.of(RewardConfig(**{key: value}))
    (name,) = (one.name for one in fields(BradleyTerry) if getattr(usual, one.name) != getattr(changed, one.name))
    assert getattr(changed, name) == value
    values = torch.linspace(-1, 2, 40, dtype=torch.float64).repeat(2, 1)
    losses = [of_values(values, rows_of(1), objective)[0]["loss"] for objective in (usual, changed)]
    assert losses[0] != losses[1]
