"""Sample texts between the steps of a run: what the weights of that step write, and what follows is as without."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import reference
from support.generation import ONE
from support.layouts import assemble, owned_blocks
from support.runs import metrics_of, tensors_of, tree_of, world_here, write_data

from megatron_lite.checkpoint import load, open_checkpoint
from megatron_lite.config import config_from_tree, resolve
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.inference.samples_in_a_run import write_samples
from megatron_lite.model.model import Model
from megatron_lite.training.between_steps import Meanwhile
from megatron_lite.training.loop import pretrain
from megatron_lite.training.samples import samples_of
from megatron_lite.training.step import Trainer

VOCABULARY, STEPS = 400, 5
PROMPTS = ("the model reads", "bytes", "a shard of text")
ASKED = {"every": 2, "prompts": list(PROMPTS), "max_new_tokens": 4}
TIMES = {"seconds", "data_seconds", "tokens_per_second", "mfu", "memory_bytes"}
CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2}
LAYOUTS = {
    "one process": (1, {}),
    "pipeline, data, ZeRO-3": (4, {"parallel__pipeline": 2, "parallel__zero_regather": "step"}),
}
MORE = {
    "cube": (8, CUBE | {"train__check_transcripts": True}),
    "context, data": (4, {"parallel__context": 2}),
    "V, ZeRO-0": (
        4,
        {"parallel__pipeline": 2, "parallel__zero_stage": 0, "parallel__schedule": "zb_v",
         "parallel__virtual_stages": 2},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), VOCABULARY)


def tree(run_dir, data_dir, **changes):
    settings = {
        "model__vocab_size": VOCABULARY,
        "data__tokenizer": str(data_dir / "small.model"),
        "train__steps": STEPS,
        "train__samples": ASKED,
        "checkpoint__every": 2,
    }
    return tree_of(run_dir, data_dir, **(settings | changes))


def run(tree, world, write=write_samples):
    """One rank's part; called in a pool's process."""
    config = config_from_tree(tree)
    return pretrain(config, resolve(config, world), world_here(world), Meanwhile(write=write))


def start(ranks, tree, world):
    if world == 1:
        run(tree, 1)
    else:
        ranks.run(run, world, tree, world)


def samples(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def without_times(run_dir: Path) -> list[dict]:
    return [{name: line[name] for name in line.keys() - TIMES} for line in metrics_of(run_dir)]


def written_alone(run_dir: Path, step: int, prompt: str) -> tuple[str, str]:
    """What a checkpoint's weights write after a prompt, in plain PyTorch: one whole pass a token, the likeliest one."""
    found = open_checkpoint(run_dir / f"checkpoints/step_{step}", ONE)
    config = config_from_tree({**found.index.config, "parallel": {"zero_regather": "step"}})
    trainer = Trainer(Model(config, resolve(config, 1), ONE))
    load(found, trainer)
    weights = {name: torch.from_numpy(one) for name, one in assemble([owned_blocks(trainer, "master")]).items()}
    tokenizer = open_tokenizer(config.data.tokenizer)
    ids = tokenizer.encode_prompt(prompt)
    before, finish = len(ids), "length"
    while finish == "length" and len(ids) < before + ASKED["max_new_tokens"]:
        ids.append(int(reference.logits(weights, torch.tensor([ids]), config.model)[0, -1].argmax()))
        finish = "stop" if ids[-1] == tokenizer.eod_id else "length"
    whole = tokenizer.decode(ids[:-1] if finish == "stop" else ids)
    return whole.removeprefix(tokenizer.decode(ids[:before])).rstrip("\ufffd"), finish  # as far as characters are whole


@pytest.mark.parametrize("layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.nightly) for name in MORE)])
def test_a_run_that_writes_samples_has_the_bits_of_one_that_does_not(ranks, tmp_path, data_dir, layout):
    world, changes = (LAYOUTS | MORE)[layout]
    with_, without = tmp_path / "with", tmp_path / "without"
    start(ranks, tree(with_, data_dir, **changes), world)
    start(ranks, tree(without, data_dir, **changes, train__samples=None), world)
    assert [(line["step"], line["prompt"]) for line in samples(with_)] == [(s, p) for s in (2, 4, 5) for p in PROMPTS]
    for line in samples(with_):
        assert (line["text"], line["finish_reason"]) == written_alone(with_, line["step"], line["prompt"])
    assert not (without / "samples.jsonl").exists()
    assert without_times(with_) == without_times(without)
    for step in (2, 4, 5):
        assert tensors_of(with_ / f"checkpoints/step_{step}") == tensors_of(without / f"checkpoints/step_{step}")


@pytest.mark.parametrize("layout", ["one process", pytest.param("cube", marks=pytest.mark.nightly)])
def test_a_resumed_run_cuts_its_samples_back_and_ends_with_those_of_an_unbroken_one(ranks, tmp_path, data_dir, layout):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    world, changes = (LAYOUTS | MORE)[layout]
    start(ranks, tree(whole, data_dir, **changes), world)
    start(ranks, tree(resumed, data_dir, **changes), world)
    shutil.rmtree(resumed / "checkpoints/step_5")
    shutil.rmtree(resumed / "checkpoints/step_4")
    later = {"step": 4, "prompt": "of a run that was broken off", "text": "\u2028", "finish_reason": "length"}
    with (resumed / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(later, ensure_ascii=False) + "\n" + '{"step": 5, "pro')
    start(ranks, tree(resumed, data_dir, **changes), world)
    assert (resumed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    last = "checkpoints/step_5"
    assert tensors_of(resumed / last) == tensors_of(whole / last)


def test_what_a_broken_run_owes_is_written_when_it_is_resumed_and_only_once(tmp_path, data_dir):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tree(whole, data_dir), 1)
    asked: list[int] = []

    def breaks(model, tokenizer, ids):
        asked.append(len(ids))
        if len(asked) == 2:
            raise OSError("the power went")
        return write_samples(model, tokenizer, ids)

    with pytest.raises(OSError, match="the power went"):
        run(tree(broken, data_dir), 1, breaks)
    assert (broken / "checkpoints/step_4/index.json").exists()
    assert {line["step"] for line in samples(broken)} == {2}
    run(tree(broken, data_dir), 1, breaks)  # it owes those after step 4, and goes on
    assert samples(broken) == samples(whole)
    run(tree(broken, data_dir), 1, breaks)  # is done, and owes nothing
    assert len(asked) == 4
    assert samples(broken) == samples(whole)


def test_a_drawn_sample_is_the_same_in_every_run_of_a_seed_and_another_for_each_prompt_and_seed(tmp_path, data_dir):
    asked = {"train__samples": {"every": 1, "prompts": ["bytes", "bytes"], "max_new_tokens": 8, "temperature": 2.0}}
    found = []
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        run(tree(tmp_path / name, data_dir, **asked, train__steps=1, train__seed=seed), 1)
        found.append([line["text"] for line in samples(tmp_path / name)])
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 4


def test_a_prompt_without_room_for_an_answer_is_refused_before_the_first_step(tmp_path, data_dir):
    asked = ASKED | {"prompts": ["bytes", "the model " * 20]}
    with pytest.raises(UsageError, match=r"train\.samples\.prompts\[1\] has \d+ tokens: must have 1 to 15, fewer than"):
        run(tree(tmp_path / "run", data_dir, train__samples=asked), 1)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_course_says_what_a_prompt_becomes(tmp_path, data_dir):
    config = config_from_tree(tree(tmp_path, data_dir))
    tokenizer = open_tokenizer(data_dir / "small.model")
    asked = samples_of(config, tokenizer, lambda prompt: [7, len(prompt)])
    assert asked is not None and asked.ids == ((7, 15), (7, 5), (7, 15))
