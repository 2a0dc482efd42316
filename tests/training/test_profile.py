"""A trace of chosen steps: which ranks and steps are in it, what carries which name, and that nothing else changes."""

import gzip
import json
import logging
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import numbers_of, run_pretrain, tree_of, write_tokens

from megatron_lite.config import config_from_tree, load_config, resolve
from megatron_lite.errors import UsageError
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.labels import label
from megatron_lite.planning.traffic import step_traffic
from megatron_lite.training.loop import Run


@pytest.fixture
def data_dir(tmp_path):
    write_tokens(tmp_path / "train", 2000, seed=1)
    write_tokens(tmp_path / "valid", 500, seed=2)
    return tmp_path


def traces_in(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir / "profile")) for path in run_dir.glob("profile/*/*"))


def names_in(path: Path) -> Counter[str]:
    """How often each range stands in a trace, but those that torch's process group adds of its own."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    ranges = (event["name"] for event in events if event.get("cat") == "user_annotation")
    return Counter(name for name in ranges if not name.startswith("gloo:"))


def steps_in(path: Path) -> list[str]:
    return [name for name in names_in(path) if name.startswith("step ")]


def small(run_dir: Path, steps: int, profile: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A run of two blocks, which neither validates nor saves before its end."""
    sizes = {"model__num_hidden_layers": 2, "train__global_batch_size": 2, "train__valid_every": None}
    return tree_of(run_dir, run_dir.parent, **sizes, train__steps=steps, train__profile=profile, **changes)


def test_a_trace_has_each_collective_and_each_unit_as_often_as_the_plan_says(ranks, data_dir):
    layout = {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__schedule": "zb_h1"}
    tree = small(data_dir / "run", 3, {"start": 1, "steps": 2, "ranks": [0, 3]}, **layout)
    ranks.run(run_pretrain, 4, tree, 4)
    assert traces_in(data_dir / "run") == ["step_1/rank_0.json.gz", "step_1/rank_3.json.gz"]
    config = config_from_tree(tree)
    resolved = resolve(config, 4)
    plan = schedule_of(config, resolved, resolved.microbatches)
    for rank, stage, units in ((0, 0, ["embedding", "block.0"]), (3, 1, ["block.1", "head"])):
        expected = Counter({"step 1": 1, "step 2": 1, "finish": 2, "update": 2})
        expected.update({f"{action} {unit}": 2 for action in plan.actions[stage] for unit in units})
        for (site, _), (calls, _) in step_traffic(config, resolved, plan, stage).items():
            expected.update({site: 2 * calls, f"wait {site}": 2 * calls})
        assert names_in(data_dir / "run" / "profile" / "step_1" / f"rank_{rank}.json.gz") == expected


def test_a_profiled_run_has_the_numbers_of_one_without(data_dir):
    for name, profile in (("plain", None), ("traced", {"start": 1, "steps": 2})):
        run_pretrain(small(data_dir / name, 2, profile), 1)
    assert numbers_of(data_dir / "traced") == numbers_of(data_dir / "plain")
    assert traces_in(data_dir / "traced") == ["step_1/rank_0.json.gz"]
    assert not (data_dir / "plain" / "profile").exists()


def test_a_resumed_run_traces_the_steps_that_are_left_and_says_where_none_are(data_dir, caplog):
    run_pretrain(small(data_dir / "run", 2, {"start": 2}), 1)
    run_pretrain(small(data_dir / "run", 4, {"start": 1, "steps": 3}), 1)
    assert traces_in(data_dir / "run") == ["step_2/rank_0.json.gz", "step_3/rank_0.json.gz"]
    assert steps_in(data_dir / "run" / "profile" / "step_3" / "rank_0.json.gz") == ["step 3"]
    with caplog.at_level(logging.INFO, logger="megatron_lite"):
        run_pretrain(small(data_dir / "run", 5, {"start": 4}), 1)
    assert "nothing to trace: train.profile ends with step 4, the run goes on after step 4" in caplog.text


def test_a_run_that_is_stopped_among_the_steps_writes_those_it_made(data_dir, monkeypatch):
    step = Run._step
    monkeypatch.setattr(Run, "_step", lambda run, writer: step(run, writer) or run.done == 2)
    run_pretrain(small(data_dir / "run", 6, {"start": 2, "steps": 5}), 1)
    assert steps_in(data_dir / "run" / "profile" / "step_2" / "rank_0.json.gz") == ["step 2"]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"start": 13}, "train.profile.start = 13: must not go past train.steps = 12"),
        ({"start": 9, "steps": 5}, "train.profile.steps = 5: must not go past train.steps = 12 from step 9 on"),
        ({"start": 0}, "train.profile.start = 0: must be greater than or equal to 1"),
        ({"start": 1, "ranks": [0, 4]}, r"train.profile.ranks = \[0, 4\]: each must be one of 0 to 3"),
        ({"start": 1, "ranks": []}, r"train.profile.ranks = \[\]: "),
        ({"begin": 1}, "train.profile.begin = 1: unknown key; valid names: train.profile.start"),
    ],
)
def test_steps_and_ranks_that_are_not_there_are_refused(data_dir, profile, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        resolve(config_from_tree(tree_of(data_dir, data_dir, train__profile=profile)), 4)


def test_a_profile_can_be_asked_for_on_the_command_line(data_dir):
    path = data_dir / "run.yaml"
    path.write_text(json.dumps(tree_of(data_dir, data_dir)), encoding="utf-8")
    profile = load_config(path, ["train.profile={start: 3, steps: 2}"]).train.profile
    assert (profile.start, profile.last, profile.ranks) == (3, 4, None)


def test_a_label_is_nothing_while_no_profiler_runs():
    assert label("one", 1) is label("another")


def test_a_label_is_a_range_of_nvtx_where_a_gpu_is_used(monkeypatch):
    seen = []

    @contextmanager
    def nvtx(name):
        seen.append(f"[ {name}")
        yield
        seen.append("]")

    monkeypatch.setattr(torch.cuda.nvtx, "range", nvtx)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with torch.profiler.profile() as profiler, label("F0", "block.3"), label("attention.enter"):
        torch.ones(1)
    assert seen == ["[ F0 block.3", "[ attention.enter", "]", "]"]
    assert {"F0 block.3", "attention.enter"} <= {event.key for event in profiler.key_averages()}
