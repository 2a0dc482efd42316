"""Low-rank adapters on a frozen base: a plain model's gradients and trajectory on every layout, and what they cost."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from nccl_replay import replay
from support.drawn import Drawn
from support.host_traffic import traffic_of
from support.layouts import (
    Blocks,
    Layout,
    Outcome,
    Tensors,
    assemble,
    build_trainer,
    differences,
    distance,
    global_batch,
    my_batches,
    owned_blocks,
    remembering,
)
from support.objectives import Regression
from support.reference import Extras
from support.reference import logits as plain_logits
from support.reference import train as reference_train

from megatron_lite.config import LoraConfig, config_from_tree, resolve
from megatron_lite.errors import UsageError
from megatron_lite.inference.model import language_model_of
from megatron_lite.model.build import initialize
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.outputs import stacked
from megatron_lite.model.parameters import is_adapter
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.ledger import connect_ledger, ledger
from megatron_lite.parallel.pipeline.stage import held
from megatron_lite.parallel.zero import TrainedShards
from megatron_lite.planning.traffic import connect_traffic, step_traffic

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.3, targets=EVERY)
CERTAIN = LoraConfig(rank=3, alpha=5.0, targets=EVERY)
SOME = LoraConfig(rank=3, alpha=5.0, targets=("v_proj", "down_proj", "q_proj"))
ONE = Layout(lora=LORA, neftune=5.0, layers=2, steps=3)
SHAPES = [
    replace(ONE, tensor=2, recompute="selective"),
    replace(ONE, tensor=2, sequence=False, recompute="full"),
    replace(ONE, pipeline=2),
    replace(ONE, pipeline=2, schedule="zb_h1", recompute="selective"),
    replace(ONE, data=2, recompute="full"),
    replace(ONE, data=2, zero_regather="step"),
    replace(ONE, context=2, recompute="selective"),
    replace(ONE, tensor=2, pipeline=2, data=2),
    replace(ONE, tensor=2, pipeline=2, context=2, recompute="full"),
]
NIGHTLY = [
    replace(ONE, tensor=2, pipeline=2, schedule="zb_h1", recompute="selective", sequence=False, tied=True),
    replace(ONE, tensor=2, data=2, zero_stage=2, lora=SOME, neftune=None, recompute="full"),
    replace(ONE, data=4, zero_stage=1, lora=SOME),
    replace(ONE, pipeline=2, virtual_stages=2, layers=4),
    replace(ONE, tensor=2, context=2, context_kind="ulysses", recompute="selective", qk_norm=True, loss_chunk=5),
    replace(ONE, pipeline=2, schedule="zb_v", virtual_stages=2, layers=4, trainable=("*norm*", "lm_head.weight")),
]
LAYOUTS = [
    *SHAPES,
    replace(ONE, data=2, zero_stage=0, lora=SOME, neftune=None, head_dim=12),
    *(pytest.param(layout, marks=pytest.mark.nightly) for layout in NIGHTLY),
]
RANDOM = ((LORA, 5.0), (CERTAIN, None), (SOME, None))
PRODUCT = [
    replace(layout, lora=lora, neftune=noise, recompute=recompute, tied=number % 2 == 0, qk_norm=number % 3 == 0)
    for number, (layout, (lora, noise), recompute) in enumerate(product(SHAPES, RANDOM, ("none", "selective", "full")))
]


@pytest.fixture(scope="module")
def outcomes(ranks):
    return remembering(ranks)


def weights_of(model: Model) -> Tensors:
    """All that one rank owns: of one process everything."""
    return assemble([owned_blocks(model, "values", model.stage.shards)])


@pytest.mark.parametrize(
    "layout",
    [
        ONE,
        replace(ONE, tied=True, qk_norm=True, lora=SOME, neftune=None),
        replace(ONE, trainable=("*.input_layernorm.*", "model.embed_tokens.weight")),
    ],
    ids=str,
)
def test_one_process_trains_adapters_as_plain_pytorch_does(outcomes, layout):
    trainer = build_trainer(layout)
    config, steps = trainer.config, range(1, layout.steps + 1)
    initial = {name: torch.from_numpy(value) for name, value in weights_of(trainer.model).items()}
    trained = assemble([owned_blocks(trainer, "master")]).keys()
    assert {name for name in trained if ".lora_" in name} == {name for name in initial if ".lora_" in name}
    size = config.train.global_batch_size, config.train.sequence_length
    expected = Outcome(
        *reference_train(
            {name: value for name, value in initial.items() if name in trained},
            [global_batch(step, config) for step in steps],
            config,
            [learning_rate(step, config.optim) for step in steps],
            [Drawn(config.train.seed, step, *size).extras(config) for step in steps],
            {name: value for name, value in initial.items() if name not in trained},
        )
    )
    found = differences(outcomes(layout), expected)
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_adapters_on_a_layout_are_one_process_with_traffic_to_the_byte(outcomes, layout):
    check_layout(outcomes, layout)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_adapters_on_the_product_of_shapes_and_choices_are_one_process(outcomes):
    for layout in PRODUCT:
        check_layout(outcomes, layout)


def check_layout(outcomes, layout: Layout) -> None:
    outcome = outcomes(layout)
    found = differences(outcome, outcomes(layout.single()))
    assert max(found.values()) < 1e-10, (str(layout), found)
    if layout.world == 1:
        return
    replay(outcome.transcripts)
    config = layout.config()
    resolved = resolve(config, layout.world)
    schedule = layout.schedule_of(config, resolved, resolved.microbatches)
    for rank, events in enumerate(outcome.transcripts):
        place = config, resolved, schedule, rank // (layout.world // layout.pipeline)
        step = {key: (layout.steps * n, layout.steps * size) for key, (n, size) in step_traffic(*place).items()}
        assert {key: (entry.calls, entry.bytes) for key, entry in ledger(events).items()} == step, str(layout)
        connect = {key: (entry.calls, entry.bytes) for key, entry in connect_ledger(events).items()}
        assert connect == connect_traffic(*place), str(layout)


def test_a_step_with_adapters_copies_nothing_between_host_and_device_and_reads_nothing_back():
    assert traffic_of(replace(ONE, tensor=2, recompute="selective"), 1) == []


def test_what_adapters_send_is_their_rank_over_the_hidden_size_of_what_blocks_do():
    """Between A and B alone: a message each way for each of a block's four products, of as many columns as its targets
    have ranks.
    """
    layout = replace(ONE, tensor=2)
    config = layout.config()
    resolved = resolve(config, 2)
    traffic = step_traffic(config, resolved, layout.schedule_of(config, resolved, resolved.microbatches), 0)
    (_, whole), rank, hidden = traffic["attention.enter", "all_gather"], config.lora.rank, config.model.hidden_size
    for site, targets in (("attention.enter", 3), ("attention.leave", 1), ("mlp.enter", 2), ("mlp.leave", 1)):
        ways = [
            size for (where, _), (_, size) in traffic.items() if where.removesuffix(".backward") == f"{site}.narrow"
        ]
        assert ways == [whole * targets * rank / hidden] * 2


def test_initially_an_adapter_adds_nothing_and_its_first_factor_has_the_stated_deviation():
    config = replace(ONE, lora=LoraConfig(rank=16, targets=EVERY)).config()
    model = build_trainer(ONE, config=config).model
    initialize(model.stage, 3)
    weights = weights_of(model)
    for name, value in weights.items():
        if ".lora_B." in name:
            assert not value.any()
        elif ".lora_A." in name:
            assert value.std() == pytest.approx(1 / np.sqrt(3 * value.shape[1]), rel=0.12), name
    names = {name.removesuffix(".weight") for name in weights if ".lora_" in name}
    modules = {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    assert names == {f"model.layers.{n}.{m}.lora_{part}" for n in range(2) for m in modules for part in "AB"}


@pytest.mark.parametrize("objective", [None, Regression()], ids=["logits", "scalar"])
def test_a_frozen_base_is_its_compute_copy_without_master_gradient_or_moments(objective):
    layout = replace(ONE, objective=objective, head="scalar" if objective else "logits", dtype="bfloat16")
    trainer = build_trainer(layout)
    trainer.train_step(my_batches(trainer, 1), 0.01)
    trained, frozen = trainer.stage.trained, [s for s in trainer.stage.shards if s not in trainer.stage.trained]
    names = {packed.logical.name for shards in trained for local in shards.layout.locals for packed in local.packs}
    assert {name for name in names if ".lora_" not in name} == ({"score.weight"} if objective else set())
    assert len(frozen) == layout.layers + 2 and not any(isinstance(shards, TrainedShards) for shards in frozen)
    for shards in frozen:
        (held_alone,) = (value for value in vars(shards).values() if isinstance(value, torch.Tensor))
        assert held_alone is shards.values and held_alone.dtype == torch.bfloat16
        assert all(weight.gradient is None and not weight.begun for weight in shards.weights)
    elements = sum(shards.layout.size for shards in trained)
    assert [sum(m.numel() for m in kind) for kind in zip(*trainer.optimizer.moments, strict=True)] == [elements] * 2


@dataclass
class Asked:
    """Of one rank: outputs [n, B, S] of each microbatch where the model ends; how often weights were gathered for the
    base.
    """

    adapted: list[np.ndarray]
    base: list[np.ndarray]
    plain: list[np.ndarray]
    gathers: int


def ask(layout: Layout) -> Asked:
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    config = trainer.config.model_copy(update={"lora": None})
    plain = Model(config, trainer.resolved, trainer.mesh, trainer.model.schedule, trainable=NOTHING)
    batches = my_batches(trainer, 1)
    base = trainer.model.base()
    recorder.events.clear()
    of_base = outputs_of(base, batches)
    gathers = sum(e.site == "zero.gather" and e.kind == "issue" for e in recorder.events)
    return Asked(outputs_of(trainer.model, batches), of_base, outputs_of(plain, batches), gathers)


def outputs_of(model: Model, batches) -> list[np.ndarray]:
    return [stacked(one).numpy() for one in model.outputs(batches, CrossEntropy())]


@pytest.mark.parametrize(
    "layout",
    [ONE, replace(ONE, tensor=2, pipeline=2, data=2), replace(ONE, context=2, tensor=2, qk_norm=True)],
    ids=str,
)
def test_the_base_is_the_model_without_adapters_around_the_same_weights(ranks, layout):
    found = [ask(layout)] if layout.world == 1 else ranks.run(ask, layout.world, layout)
    asked = [rank for rank in found if rank.base]
    assert len(asked) == layout.world // layout.pipeline
    for rank in asked:
        for base, plain, adapted in zip(rank.base, rank.plain, rank.adapted, strict=True):
            assert np.array_equal(base, plain)
            assert distance(adapted, plain) > 0.01
    if layout.pipeline > 1:  # two units a stage, gathered for each microbatch: no adapter's shards
        assert {rank.gathers for rank in found} == {2 * 6}


def test_the_base_follows_its_weights_and_holds_none_of_its_own():
    trainer = build_trainer(replace(ONE, trainable=("model.norm.weight",)))
    base = trainer.model.base()
    assert {id(shards) for shards in base.stage.shards} < {id(shards) for shards in trainer.stage.shards}
    assert not any(is_adapter(name) for name in weights_of(base))
    batches = my_batches(trainer, 1)
    before = outputs_of(base, batches)
    trainer.train_step(batches, 0.01)
    assert distance(outputs_of(base, batches)[0], before[0]) > 1e-6


def logits_of(layout: Layout) -> tuple[np.ndarray, Blocks]:
    """Of generation's own units, beside a cache; and all weights that this rank owns."""
    trainer = build_trainer(layout)
    model = language_model_of(trainer.model)
    tokens = global_batch(1, trainer.config)[0, :-1]
    with held(model.stage):
        logits = model.logits(tokens)
    return logits.numpy(), owned_blocks(trainer, "values", trainer.stage.shards)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tensor", [1, 2])
def test_generation_is_adapted_too_and_drops_nothing_out(ranks, tensor, qk_norm):
    layout = replace(ONE, tensor=tensor, qk_norm=qk_norm)
    found = [logits_of(layout)] if tensor == 1 else ranks.run(logits_of, tensor, layout)
    config = layout.config()
    weights = {name: torch.from_numpy(value) for name, value in assemble([blocks for _, blocks in found]).items()}
    tokens, extras = global_batch(1, config)[:1, :-1], Extras(config.lora.scale)
    expected = plain_logits(weights, tokens, config.model, extras=extras)[0].numpy()
    assert max(distance(logits, expected) for logits, _ in found) < 1e-10


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"targets": ["q_proj", "q_proj"]}, r"lora\.targets: q_proj stands twice"),
        ({"targets": ["qkv_proj"]}, r"lora\.targets"),
        ({"dropout": 1.0}, r"lora\.dropout"),
        ({"rank": 0}, r"lora\.rank"),
    ],
)
def test_what_no_adapter_can_be_is_refused_by_name(changed, line):
    with pytest.raises(UsageError, match=line):
        config_from_tree(ONE.config().model_dump(mode="json") | {"lora": changed})
