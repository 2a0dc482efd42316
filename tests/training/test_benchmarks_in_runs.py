"""Benchmarks between the steps of a run, by a function that asks the model in training: what follows is as without."""

import gc
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches
from support.runs import metrics_of, tensors_of, tree_of, world_here, write_data

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.inference.model import language_model_of
from megatron_lite.model.model import Model
from megatron_lite.parallel.pipeline.stage import held, hold
from megatron_lite.training.benchmarks import numbers_after
from megatron_lite.training.between_steps import Meanwhile
from megatron_lite.training.loop import pretrain

VOCABULARY, STEPS = 400, 5
CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2, "train__dtype": "bfloat16"}
STEP = {"parallel__zero_regather": "step"}
INTERLEAVED = {"parallel__schedule": "interleaved_1f1b", "parallel__virtual_stages": 2}
VEE = {"parallel__schedule": "zb_v", "parallel__virtual_stages": 2}
SHARDED = "tensor, data, each step regathers"
LAYOUTS = {
    "one process": (1, {}),
    SHARDED: (4, {"parallel__tensor": 2} | STEP),
    "cube, virtual stages, each microbatch regathers": (8, CUBE | INTERLEAVED | {"train__ema": 0.9}),
}
MORE = {
    "cube, each microbatch regathers": (8, CUBE | {"train__check_transcripts": True}),
    "cube, each step regathers": (8, CUBE | STEP),
    "context and V, ZeRO-1": (4, {"parallel__pipeline": 2, "parallel__context": 2, "parallel__zero_stage": 1} | VEE),
    "V, ZeRO-0": (4, {"parallel__pipeline": 2, "parallel__zero_stage": 0} | VEE),
}
TIMES = {"seconds", "data_seconds", "tokens_per_second", "mfu", "memory_bytes"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), VOCABULARY)


def tree(run_dir, data_dir, **changes):
    settings = {
        "model__vocab_size": VOCABULARY,
        "data__tokenizer": str(data_dir / "small.model"),
        "train__steps": STEPS,
        "train__valid_every": 3,
        "train__evaluate": {"every": 2, "tasks": ["counting"]},
        "checkpoint__every": 2,
    }
    return tree_of(run_dir, data_dir, **(settings | changes))


def score(model: Model, step: int) -> dict[str, float]:
    """The mean logit of a few texts on every rank, and everything that a harness may do to random numbers."""
    random.seed(1234)
    np.random.seed(1234)
    torch.manual_seed(1234)
    total = 0.0
    with held(model.stage):
        language = language_model_of(model)
        for text in ([5, 9, 300], [7], list(range(16))):
            logits = language.logits(torch.tensor(text))
            total += 0.0 if logits is None else logits.double().sum().item()
            random.random()
            torch.rand(3)
    mean = language.everywhere(
        torch.tensor([total], dtype=torch.float64) if model.mesh.has_head else None, (1,), torch.float64
    )
    return {"counting/logit": mean.item(), "counting/step": float(step)}


def broken_at_4(model: Model, step: int) -> dict[str, float]:
    if step == 4:
        raise OSError("the harness lost its documents")
    return score(model, step)


def nothing(model: Model, step: int) -> dict[str, float]:
    return {}


FUNCTIONS = {"score": score, "broken": broken_at_4, "nothing": nothing, "none": None}


def run(tree, world, function):
    """One rank's part; called in a pool's process."""
    config = config_from_tree(tree)
    return pretrain(config, resolve(config, world), world_here(world), Meanwhile(FUNCTIONS[function]))


def start(ranks, tree, world, function):
    if world == 1:
        run(tree, 1, function)
    else:
        ranks.run(run, world, tree, world, function)


def without_times(run_dir: Path) -> list[dict]:
    return [{name: line[name] for name in line.keys() - TIMES} for line in metrics_of(run_dir)]


def without_evaluation(lines: list[dict]) -> list[dict]:
    return [{name: line[name] for name in line if not name.startswith("evaluation/")} for line in lines]


def evaluated(lines: list[dict]) -> dict[int, float]:
    """The step that the function was told, by the line's."""
    name = "evaluation/counting/step"
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.mark.parametrize("layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.nightly) for name in MORE)])
def test_a_run_with_benchmarks_has_the_bits_of_one_without(ranks, tmp_path, data_dir, layout):
    world, changes = (LAYOUTS | MORE)[layout]
    with_, without = tmp_path / "with", tmp_path / "without"
    start(ranks, tree(with_, data_dir, **changes), world, "score")
    start(ranks, tree(without, data_dir, **changes, train__evaluate=None), world, "none")
    lines = without_times(with_)
    assert evaluated(lines) == {2: 2, 4: 4, 5: 5}
    assert len({line["evaluation/counting/logit"] for line in lines if line["step"] in (2, 4, 5)}) == 3
    assert without_evaluation(lines) == without_times(without)
    for step in (2, 4, 5):
        assert tensors_of(with_ / f"checkpoints/step_{step}") == tensors_of(without / f"checkpoints/step_{step}")


@pytest.mark.parametrize("layout", ["one process", pytest.param(SHARDED, marks=pytest.mark.nightly)])
def test_a_resumed_run_with_benchmarks_has_the_bits_and_the_numbers_of_an_unbroken_one(
    ranks, tmp_path, data_dir, layout
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    world, changes = LAYOUTS[layout]
    start(ranks, tree(whole, data_dir, **changes), world, "score")
    start(ranks, tree(resumed, data_dir, **changes, train__steps=2, train__valid_every=None), world, "score")
    start(ranks, tree(resumed, data_dir, **changes), world, "score")
    assert without_times(resumed)[2:] == without_times(whole)[2:]
    assert evaluated(without_times(resumed)) == {2: 2, 4: 4, 5: 5}
    last = "checkpoints/step_5"
    assert tensors_of(resumed / last) == tensors_of(whole / last)


def test_what_breaks_comes_after_the_checkpoint_and_is_made_up_for(tmp_path, data_dir):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tree(whole, data_dir), 1, "score")
    with pytest.raises(OSError, match="lost its documents"):
        run(tree(broken, data_dir), 1, "broken")
    assert (broken / "checkpoints/step_4/index.json").exists()
    assert [line["step"] for line in metrics_of(broken)] == [1, 2, 3, 4]
    assert evaluated(metrics_of(broken)) == {2: 2}
    run(tree(broken, data_dir), 1, "score")
    assert without_times(broken) == without_times(whole)
    lines = metrics_of(broken)
    run(tree(broken, data_dir), 1, "broken")  # is done, and owes nothing
    assert metrics_of(broken) == lines


def test_benchmarks_fall_on_every_few_steps_and_the_last(tmp_path, data_dir):
    run(tree(tmp_path / "run", data_dir, train__evaluate={"every": 4, "tasks": ["counting"]}), 1, "score")
    assert evaluated(metrics_of(tmp_path / "run")) == {4: 4, 5: 5}
    run(tree(tmp_path / "silent", data_dir), 1, "nothing")
    assert evaluated(metrics_of(tmp_path / "silent")) == {}


def test_random_numbers_go_on_where_they_were():
    trainer = build_trainer(Layout())
    for generator in (random.random, np.random.random, lambda: torch.rand(1).item()):
        generator()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    assert numbers_after(3, trainer.model, score_61)["evaluation/counting/step"] == 3
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def score_61(model: Model, step: int) -> dict[str, float]:
    """For a vocabulary of 61."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with held(model.stage):
        logits = language_model_of(model).logits(torch.tensor([5, 9, 60]))
    return {"counting/logit": 0.0 if logits is None else logits.sum().item(), "counting/step": step}


def alive() -> int:
    """Bytes of all tensors, once gloo's threads have let go of what they sent."""
    sizes = []
    for _ in range(5):
        time.sleep(0.02)
        gc.collect()
        found = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
        sizes.append(sum({one.data_ptr(): one.nbytes() for one in found}.values()))
    return min(sizes)


def memory_around(layout: Layout) -> tuple[int, int, list[bool]]:
    """Bytes before and after, and which weights are held."""
    trainer = build_trainer(layout)
    result = trainer.gradients(my_batches(trainer, 1))
    trainer.update(result.grad_norm, 0.01)
    del result
    numbers_after(1, trainer.model, score_61)  # tables of angles and the like are made once
    before = alive()
    numbers_after(1, trainer.model, score_61)
    return before, alive(), [shards.held for shards in trainer.stage.shards]


@pytest.mark.parametrize(
    "layout",
    [Layout(data=2), pytest.param(Layout(tensor=2, zero_stage=1, dtype="bfloat16"), marks=pytest.mark.nightly)],
    ids=str,
)
def test_memory_returns_to_what_it_was(ranks, layout):
    for before, after, holding in ranks.run(memory_around, layout.world, layout):
        assert before == after > 0
        assert not any(holding)


def test_weights_that_stay_held_end_the_run():
    trainer = build_trainer(Layout())

    def keep(model: Model, step: int) -> dict[str, float]:
        hold(model.stage)
        return {}

    with pytest.raises(RuntimeError, match="weights of embedding are still held after step 7's evaluation"):
        numbers_after(7, trainer.model, keep)
