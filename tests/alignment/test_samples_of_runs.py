"""Sample texts in runs after pretraining: a prompt is what a user says, in the template that is trained on."""

import json
from itertools import groupby
from typing import Any

import pytest
from support.aligning import tree_of, write_rows
from support.runs import tensors_of, world_here

from megatron_lite.alignment.arguments import config_of
from megatron_lite.alignment.run import align
from megatron_lite.config import resolve
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.inference.samples_in_a_run import write_samples
from megatron_lite.training.between_steps import Meanwhile

ASKED = {"every": 4, "prompts": ["the model", "</s> of bytes"], "max_new_tokens": 4}
CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2}
ALGORITHMS = ("sft", "dpo")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def run(algorithm: str, tree: dict[str, Any], world: int) -> list[list[list[int]]]:
    """One rank's part; what it was asked to go on with, each time."""
    config, asked = config_of(tree, algorithm), []

    def write(model, tokenizer, ids):
        asked.append([list(one) for one in ids])
        return write_samples(model, tokenizer, ids)

    align(config, resolve(config, world), world_here(world), Meanwhile(write=write))
    return asked


def spoken(ids: list[int], tokenizer) -> list[str]:
    """Control tokens by name, and the text between them."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    parts = groupby(ids, names.get)
    return [name if name is not None else tokenizer.decode(list(some)).strip() for name, some in parts]


def test_a_prompt_is_a_users_turn_after_the_system_prompt_and_makes_no_control_token(tmp_path, data_dir):
    changes = {"train__samples": ASKED, "data__system_prompt": "be brief", "train__steps": 1}
    (asked,) = run("sft", tree_of("sft", tmp_path / "run", data_dir, **changes), 1)
    tokenizer = open_tokenizer(data_dir / "small.model")
    for ids, prompt in zip(asked, ASKED["prompts"], strict=True):
        turns = ["<s>", "system\nbe brief", "</s>", "<s>", f"user\n{prompt}", "</s>", "<s>", "assistant"]
        assert spoken(ids, tokenizer) == turns


@pytest.mark.parametrize(
    ("algorithm", "world"),
    [*((one, 1) for one in ALGORITHMS), *(pytest.param(one, 8, marks=pytest.mark.nightly) for one in ALGORITHMS)],
)
def test_a_run_that_writes_samples_has_the_bits_of_one_that_does_not(ranks, tmp_path, data_dir, algorithm, world):
    with_, without = tmp_path / "with", tmp_path / "without"
    layout = CUBE if world == 8 else {}
    for run_dir, samples in ((with_, ASKED), (without, None)):
        tree = tree_of(algorithm, run_dir, data_dir, train__samples=samples, **layout)
        if world == 1:
            run(algorithm, tree, 1)
        else:
            ranks.run(run, world, algorithm, tree, world, timeout=300)
    lines = [json.loads(line) for line in (with_ / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(line["step"], line["prompt"]) for line in lines] == [(s, p) for s in (4, 6) for p in ASKED["prompts"]]
    assert "<h2>Sample texts</h2>" in (with_ / "report.html").read_text(encoding="utf-8")
    for step in (3, 6):
        assert tensors_of(with_ / f"checkpoints/step_{step}") == tensors_of(without / f"checkpoints/step_{step}")


def test_a_reward_model_is_asked_for_no_text(tmp_path, data_dir):
    with pytest.raises(UsageError, match=r"train\.samples: must be null with model\.head = scalar"):
        config_of(tree_of("reward", tmp_path, data_dir, train__samples=ASKED), "reward")
