"""Frozen weights: what is trained beside them has the gradients of a plain model, and they cost what they must."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
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
)
from support.reference import objective as plain_objective

from megatron_lite.config import Config, config_from_tree
from megatron_lite.errors import UsageError
from megatron_lite.model.build import initialize
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model
from megatron_lite.model.outputs import stacked
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.parallel.zero import TrainedShards
from megatron_lite.training.step import Trainer

CUBE = Layout(tensor=2, pipeline=2, data=2)
LAYOUTS = [
    Layout(),
    CUBE,
    replace(CUBE, schedule="zb_h1", loss_chunk=5, tied=True),
    Layout(tensor=2, context=2, sequence=False, recompute="selective", zero_stage=2),
    Layout(pipeline=2, data=2, recompute="full", zero_stage=0, zero_regather="step"),
]
CHOICES = {
    "attention": ("*.self_attn.*",),
    "feed-forward": ("*.mlp.*", "*norm*"),
    "ends": ("model.embed_tokens.weight", "*.layers.3.*"),
}


def config_of(layout: Layout, trainable: tuple[str, ...]) -> Config:
    return layout.config(trainable=list(trainable))


@dataclass
class Found:
    """Of one rank: weights before and after a step, gradients, loss and norm, what was sent."""

    before: Blocks
    after: Blocks
    gradients: Blocks
    loss: float
    norm: float
    events: list[Event]


def values_of(trainer: Trainer) -> Blocks:
    """Of all weights, frozen ones too."""
    return owned_blocks(trainer, "values", trainer.stage.shards)


def found_by(trainer: Trainer, events: list[Event]) -> Found:
    before = values_of(trainer)
    result = trainer.gradients(my_batches(trainer, 1))
    gradients = owned_blocks(trainer, "gradient")
    trainer.update(result.grad_norm, 0.01)
    return Found(before, values_of(trainer), gradients, result.loss.item(), result.grad_norm.item(), events)


def run(layout: Layout, trainable: tuple[str, ...]) -> Found:
    recorder = Recorder()
    return found_by(build_trainer(layout, recorder, config_of(layout, trainable)), recorder.events)


def check(found: list[Found], gradients: dict[str, np.ndarray], loss: float) -> None:
    ours = assemble([rank.gradients for rank in found])
    assert ours.keys() == gradients.keys()
    errors = {name: distance(ours[name], expected) for name, expected in gradients.items()}
    assert max(errors.values()) < 1e-10, errors
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    for rank in found:
        assert (rank.loss, rank.norm) == pytest.approx((loss, norm), rel=1e-10)
    before, after = (assemble([getattr(rank, when) for rank in found]) for when in ("before", "after"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == gradients.keys()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_trained_has_a_plain_models_gradients_and_nothing_else_changes(ranks, layout, choice):
    trainable = CHOICES[choice]
    found = [run(layout, trainable)] if layout.world == 1 else ranks.run(run, layout.world, layout, trainable)
    config = config_of(layout, trainable)
    weights = {n: torch.from_numpy(w).requires_grad_() for n, w in assemble([r.before for r in found]).items()}
    loss, total = plain_objective(weights, global_batch(1, config), config.model, config.train.z_loss)
    total.backward()
    parts = {"attention": ("self_attn",), "feed-forward": ("mlp", "norm"), "ends": ("embed", "layers.3")}[choice]
    trained = {n: w.grad.numpy() for n, w in weights.items() if any(part in n for part in parts)}
    check(found, trained, loss.item())
    if layout.world > 1:
        replay([rank.events for rank in found])


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("*.q_proj.weight", r"trains model.layers.0.self_attn.q_proj.weight but not .*k_proj.*packed weight, qkv"),
        ("*.gate_proj.weight", r"trains .*gate_proj.weight but not .*up_proj.weight, which lie in one packed weight"),
        ("model.layer.*", r"train.trainable: model.layer.\* matches no parameter of the model"),
    ],
)
def test_a_pattern_that_cuts_a_packed_weight_or_matches_nothing_is_refused_by_name(pattern, line):
    with pytest.raises(UsageError, match=line):
        build_trainer(Layout(), config=config_of(Layout(), (pattern,)))


def test_no_pattern_at_all_is_refused():
    tree = Layout().config().model_dump(mode="json")
    with pytest.raises(UsageError, match=r"train\.trainable"):
        config_from_tree(tree | {"train": tree["train"] | {"trainable": []}})


def outputs_held(layout: Layout) -> tuple[bool, int, int]:
    """Whether held weights give the same bits as gathered ones; gathers before, and gathers while they were held."""
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    batches, counts, outputs = my_batches(trainer, 1), [], []
    for hold in (False, True):
        recorder.events.clear()
        with held(trainer.stage) if hold else nullcontext():
            for _ in range(2):
                outputs.append([stacked(one) for one in trainer.model.outputs(batches, trainer.objective)])
        counts.append(sum(e.site == "zero.gather" and e.kind == "issue" for e in recorder.events))
    assert not any(shards.held for shards in trainer.stage.shards)
    trainer.gradients(batches)
    same = all(torch.equal(a, b) for other in outputs[1:] for a, b in zip(outputs[0], other, strict=True))
    return same, *counts


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_held_weights_are_gathered_once_at_any_zero_stage(ranks, stage):
    layout = Layout(pipeline=2, data=2, zero_stage=stage, zero_regather="microbatch")
    for same, before, within in ranks.run(outputs_held, layout.world, layout):
        assert same
        assert within == 3  # two blocks, and the embedding or the head
        assert before == (2 * 3 if stage < 3 else 2 * 3 * 6)  # twice; at stage 3 for each of six microbatches


def test_held_weights_must_not_change():
    trainer = build_trainer(Layout(dtype="bfloat16"))
    with held(trainer.stage), pytest.raises(RuntimeError, match=r"weights of embedding changed while they are"):
        initialize(trainer.stage, 0)


def test_a_frozen_model_has_its_compute_copy_and_nothing_else():
    config = Layout(dtype="bfloat16").config()
    trainer = build_trainer(Layout(dtype="bfloat16"), config=config)
    frozen = Model(config, trainer.resolved, trainer.mesh, trainable=NOTHING)
    assert not any(isinstance(shards, TrainedShards) for shards in frozen.stage.shards)
    for ours, theirs in zip(frozen.stage.shards, trainer.stage.shards, strict=True):
        assert ours.compute.dtype == torch.bfloat16
        assert torch.equal(ours.compute, theirs.compute)
