"""`train.evaluate` of a run: what cannot be asked is said before the first step, and how its numbers are named."""

import json
import math
import os
import subprocess
import sys

import pytest
from support.runs import metrics_of, start_pretrain, tensors_of, tree_of, world_here, write_tokens
from support.text import random_texts, train_small_tokenizer, write_dataset

from megatron_lite.config import config_from_tree
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import UsageError
from megatron_lite.evaluation.in_a_run import (
    evaluation_of,
    numbers_of,
    refuse_what_cannot_be_asked,
    write_results,
)
from megatron_lite.evaluation.page import read_evaluation
from megatron_lite.evaluation.run import Asked

RESULTS = {
    "results": {
        "arc_easy": {
            "name": "arc_easy", "alias": "arc_easy", "sample_len": 5, "acc,none": 0.25, "acc_stderr,none": 0.125,
            "acc_norm,none": 1, "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match,flexible-extract": math.nan},
        "mmlu": {"alias": "mmlu", "acc,none": 0.75},
        "mmlu_virology": {"alias": "- virology", "acc,none": 0.5},
    },
    "group_subtasks": {"mmlu": ["mmlu_virology"]},
    "samples": {"arc_easy": [1, 2, 3]},
}  # fmt: skip


def test_numbers_have_the_names_of_task_metric_and_filter_and_a_group_stands_for_its_tasks():
    assert numbers_of(RESULTS) == {
        "arc_easy/acc": 0.25, "arc_easy/acc_stderr": 0.125, "arc_easy/acc_norm": 1.0,
        "gsm8k/exact_match,strict-match": 0.5, "mmlu/acc": 0.75,
    }  # fmt: skip


def test_the_harness_results_are_kept_without_each_documents_answers(tmp_path):
    write_results(tmp_path, 3, RESULTS)
    kept = json.loads((tmp_path / "evaluation" / "step_3.json").read_text(encoding="utf-8"))
    assert kept["results"]["arc_easy"]["acc,none"] == 0.25
    assert "samples" not in kept
    assert kept["checkpoint"] == str(tmp_path / "checkpoints" / "step_3")


def tree(tmp_path, evaluate):
    train_small_tokenizer(tmp_path)
    write_tokens(tmp_path / "train", 2000, 400)
    tokenizer = str(tmp_path / "small.model")
    changes = {"data__valid": [], "data__tokenizer": tokenizer, "model__vocab_size": 400, "train__evaluate": evaluate}
    return tree_of(tmp_path / "run", tmp_path, **changes)


def test_a_run_without_benchmarks_asks_for_nothing(tmp_path):
    assert evaluation_of(config_from_tree(tree(tmp_path, None)), world_here()) is None


def test_a_missing_harness_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "megatron_lite.evaluation.tasks", raising=False)
    said = r"train\.evaluate: takes lm-eval, and \w+ is missing: pip install 'megatron_lite\[eval\]'"
    with pytest.raises(UsageError, match=said):
        refuse_what_cannot_be_asked(Asked(("arc_easy",)), 512)


def test_what_cannot_be_asked_ends_a_run_before_its_first_step_with_code_2(tmp_path):
    """With lm-eval the task is unknown; without, lm-eval is missing."""
    process = start_pretrain(tree(tmp_path, {"every": 1, "tasks": ["no_such_task_anywhere"]}), 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    ended = json.loads((tmp_path / "run" / "exit.json").read_text(encoding="utf-8"))
    assert (ended["code"], ended["rank"]) == (2, 0), output
    assert ended["reason"].startswith("train.evaluate: ") and "\n" not in ended["reason"]
    assert output.count(f"error: {ended['reason']}") == 1
    assert "in evaluation_of" not in output  # torchrun alone has a traceback, its own
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


NANO = {"preset": "nano", "vocab_size": 400}
TASKS, LIMIT = ("arc_easy", "sciq"), 20
CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "layout", [CUBE, CUBE | {"parallel__schedule": "zb_v", "parallel__virtual_stages": 2}], ids=["1F1B", "V"]
)
def test_real_benchmarks_in_a_run_on_8_ranks_are_those_of_its_checkpoints_and_change_nothing(tmp_path, layout):
    """With lm-eval and its documents; the checkpoints are asked by the command, on one process, in float64."""
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(tmp_path))
    documents = [[[*tokenizer.encode(text), tokenizer.eod_id]] for text in random_texts(0, 400)]
    for name in ("train", "valid"):
        write_dataset(tmp_path / name, documents, tokenizer=tokenizer.identity)
    settings = layout | {
        "data__tokenizer": tokenizer.path, "train__sequence_length": 64, "train__steps": 4, "checkpoint__every": 2,
    }  # fmt: skip
    asked = {"every": 2, "tasks": list(TASKS), "limit": LIMIT}
    for name, evaluate in (("with", asked), ("without", None)):
        tree = tree_of(tmp_path / name, tmp_path, **settings, train__evaluate=evaluate) | {"model": NANO}
        output, _ = (process := start_pretrain(tree, 8)).communicate(timeout=400)
        assert process.returncode == 0, output
    for step in (2, 4):
        checkpoint = f"checkpoints/step_{step}"
        assert tensors_of(tmp_path / "with" / checkpoint) == tensors_of(tmp_path / "without" / checkpoint)
    for ours, theirs in zip(metrics_of(tmp_path / "with"), metrics_of(tmp_path / "without"), strict=True):
        names = ("step", "loss", "grad_norm", "valid_loss", "valid_bits_per_byte")
        assert [ours.get(name) for name in names] == [theirs.get(name) for name in names]
        found = {name.removeprefix("evaluation/"): ours[name] for name in ours if name.startswith("evaluation/")}
        if ours["step"] % 2:
            assert not found
            continue
        alone = evaluated_alone(tmp_path / "with" / f"checkpoints/step_{ours['step']}", tmp_path / "alone.json")
        assert found == numbers_of(alone)
        assert {f"{task}/acc_norm" for task in TASKS} < found.keys()
        path = tmp_path / "with" / "evaluation" / f"step_{ours['step']}.json"
        assert json.loads(path.read_text(encoding="utf-8"))["results"] == alone["results"]
        assert (read_evaluation(path).run, read_evaluation(path).step) == ("with", ours["step"])


def evaluated_alone(checkpoint, output):
    command = [sys.executable, "-m", "megatron_lite.evaluate", str(checkpoint), "--tasks", ",".join(TASKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--limit", str(LIMIT), "--output", str(output)], env=environment, check=True)
    return json.loads(output.read_text(encoding="utf-8"))
