"""A model that ends with one number a token: its gradients are those of a plain model, and it has no logits."""

from dataclasses import dataclass, replace

import pytest
import torch
from nccl_replay import replay
from support.layouts import Blocks, Layout, assemble, build_trainer, distance, global_batch, my_batches, owned_blocks
from support.objectives import Preference, Regression, target
from support.reference import hidden
from torch import Tensor

from megatron_lite.errors import UsageError
from megatron_lite.model.outputs import stacked
from megatron_lite.parallel.collectives import Event, Recorder

SCALAR = Layout(head="scalar", objective=Regression())
LAYOUTS = [
    SCALAR,
    replace(SCALAR, tensor=2, pipeline=2),
    replace(SCALAR, tensor=2, pipeline=2, sequence=False, schedule="zb_h1"),
    replace(SCALAR, tensor=2, context=2, data=2, recompute="full"),
]


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
    trainer = build_trainer(layout, recorder)
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
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    weights = {name: torch.from_numpy(w).requires_grad_() for name, w in assemble([r.weights for r in found]).items()}
    config = layout.config()
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
    trainer = build_trainer(replace(SCALAR, dtype="bfloat16"))
    (values, *_) = trainer.model.outputs(my_batches(trainer, 1), trainer.objective)
    assert values.value.dtype == torch.float32
    assert (values.value != values.value.bfloat16().float()).any()


def test_a_vocabulary_refuses_an_objective_over_values_by_name():
    with pytest.raises(TypeError, match="Regression is no objective over a vocabulary"):
        build_trainer(Layout(objective=Regression()))


def test_a_scalar_head_cannot_be_tied():
    with pytest.raises(UsageError, match=r"model.tie_word_embeddings = true: a scalar head has no embedding to tie"):
        replace(SCALAR, tied=True).config()


def test_a_scalar_head_refuses_an_objective_over_a_vocabulary_by_name():
    with pytest.raises(TypeError, match="Preference is an objective over a vocabulary: this model has none"):
        build_trainer(replace(SCALAR, objective=Preference()))
