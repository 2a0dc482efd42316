"""A model that ends with one number a token: its gradients are those of a plain model, and it has no logits."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from nccl_replay import replay
from support.layouts import Blocks, Layout, assemble, build_trainer, distance, global_batch, my_batches, owned_blocks
from support.objectives import Preference
from support.reference import hidden
from torch import Tensor

from megatron_lite.config import Config
from megatron_lite.errors import UsageError
from megatron_lite.model.outputs import Values, stacked
from megatron_lite.model.sequences import Column, Sequences
from megatron_lite.parallel.collectives import Event, Recorder

LAYOUTS = [
    Layout(),
    Layout(tensor=2, pipeline=2),
    Layout(tensor=2, pipeline=2, sequence=False, schedule="zb_h1"),
    Layout(tensor=2, context=2, data=2, recompute="full"),
]


@dataclass(frozen=True)
class Regression:
    """Half the squared distance of each token's value from a target made of its id: a critic's loss."""

    sums: ClassVar[tuple[str, ...]] = ("loss",)
    maxima: ClassVar[tuple[str, ...]] = ("largest",)
    columns: ClassVar[tuple[Column, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.counted.sum(dtype=torch.float64).unsqueeze(0)

    def loss(self, outputs: Values, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = 0.5 * (outputs.value - target(sequences.tokens)).square().sum() / denominators[0]
        return loss, {"loss": loss.detach().double(), "largest": outputs.value.detach().double().amax()}


def target(tokens: Tensor) -> Tensor:
    return (tokens % 5).double() / 7


def config_of(layout: Layout) -> Config:
    config = layout.config()
    return config.model_copy(update={"model": config.model.model_copy(update={"head": "scalar"})})


@dataclass
class Found:
    """Of one rank."""

    weights: Blocks
    gradients: Blocks
    loss: float
    largest: float
    values: Tensor | None
    data: int
    events: list[Event]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    trainer = build_trainer(layout, recorder, config_of(layout))
    batches = my_batches(trainer, 1)
    values = [stacked(one)[0] for one in trainer.model.outputs(batches, trainer.objective)]
    result = trainer.gradients(batches)
    return Found(
        owned_blocks(trainer, "master"),
        owned_blocks(trainer, "gradient"),
        result.loss.item(),
        result.numbers["largest"].item(),
        torch.cat(values) if values else None,
        trainer.mesh.coordinate["data"],
        recorder.events,
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_value_heads_gradients_and_values_are_those_of_a_plain_model(ranks, layout):
    layout = replace(layout, objective=Regression())
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    weights = {name: torch.from_numpy(w).requires_grad_() for name, w in assemble([r.weights for r in found]).items()}
    config = config_of(layout)
    tokens = global_batch(1, config)[:, :-1]
    values = (hidden(weights, tokens, config.model) @ weights["score.weight"].T).squeeze(-1)
    loss = 0.5 * (values - target(tokens)).square().mean()
    loss.backward()
    gradients = assemble([rank.gradients for rank in found])
    assert "lm_head.weight" not in gradients
    errors = {name: distance(gradients[name], weight.grad.numpy()) for name, weight in weights.items()}
    assert max(errors.values()) < 1e-10, errors
    for rank in found:
        assert (rank.loss, rank.largest) == pytest.approx((loss.item(), values.max().item()), rel=1e-10)
        if rank.values is not None:
            assert (rank.values - values.chunk(layout.data)[rank.data]).abs().max() < 1e-10
    if layout.world > 1:
        replay([rank.events for rank in found])


def test_values_are_float32_in_a_bfloat16_model():
    layout = Layout(dtype="bfloat16", objective=Regression())
    trainer = build_trainer(layout, config=config_of(layout))
    (values, *_) = trainer.model.outputs(my_batches(trainer, 1), trainer.objective)
    assert values.value.dtype == torch.float32
    assert (values.value != values.value.bfloat16().float()).any()


def test_a_vocabulary_refuses_an_objective_over_values_by_name():
    with pytest.raises(TypeError, match="Regression is no objective over a vocabulary"):
        build_trainer(Layout(objective=Regression()))


def test_a_scalar_head_cannot_be_tied():
    with pytest.raises(UsageError, match=r"model.tie_word_embeddings = true: a scalar head has no embedding to tie"):
        Config.model_validate(
            (tree := Layout(tied=True).config().model_dump(mode="json")) | {"model": tree["model"] | {"head": "scalar"}}
        )


def test_a_scalar_head_refuses_an_objective_over_a_vocabulary_by_name():
    layout = Layout(objective=Preference())
    with pytest.raises(TypeError, match="Preference is an objective over a vocabulary: this model has none"):
        build_trainer(layout, config=config_of(layout))
