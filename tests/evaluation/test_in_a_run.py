"""`train.evaluate` of a run: what cannot be asked is said before the first step, and how its numbers are named."""

import json
import math
import sys

import pytest
from support.runs import start_pretrain, tree_of, world_here, write_tokens
from support.text import train_small_tokenizer

from megatron_lite.config import config_from_tree
from megatron_lite.errors import UsageError
from megatron_lite.evaluation.in_a_run import (
    evaluation_of,
    numbers_of,
    refuse_what_cannot_be_asked,
    write_results,
)
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
    write_results(tmp_path / "evaluation" / "step_3.json", RESULTS)
    kept = json.loads((tmp_path / "evaluation" / "step_3.json").read_text(encoding="utf-8"))
    assert kept["results"]["arc_easy"]["acc,none"] == 0.25
    assert "samples" not in kept


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
        refuse_what_cannot_be_asked(Asked(("arc_easy",)))


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
