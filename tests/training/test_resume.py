"""A run that was ended, by a crash, a signal or a change of layout, goes on as if nothing had happened."""

import json
import random
import signal

import pytest
from support.runs import (
    kill_launcher,
    numbers_of,
    run_pretrain,
    start_pretrain,
    tensors_of,
    tree_of,
    wait_for_step,
    write_tokens,
)

CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2}


@pytest.fixture
def data_dir(tmp_path):
    write_tokens(tmp_path / "train", 2000, seed=1)
    write_tokens(tmp_path / "valid", 500, seed=2)
    return tmp_path


@pytest.mark.nightly
def test_run_killed_at_a_random_step_resumes_to_the_bit(ranks, data_dir):
    whole, killed = data_dir / "whole", data_dir / "killed"
    settings = {**CUBE, "train__dtype": "bfloat16", "train__steps": 24, "optim__decay_steps": 24}
    ranks.run(run_pretrain, 8, tree_of(whole, data_dir, **settings), 8)

    step = random.randrange(5, 18)
    process = start_pretrain(tree_of(killed, data_dir, **settings), 8)
    wait_for_step(killed, step, process)
    kill_launcher(process)
    assert not (killed / "checkpoints" / "step_24").exists(), f"killed too late, at step {step}"
    ranks.run(run_pretrain, 8, tree_of(killed, data_dir, **settings), 8)

    assert numbers_of(killed) == numbers_of(whole), f"killed at step {step}"
    assert tensors_of(killed / "checkpoints" / "step_24") == tensors_of(whole / "checkpoints" / "step_24")


def test_a_moving_average_goes_on_to_the_bit(data_dir):
    whole, stopped = data_dir / "whole", data_dir / "stopped"
    settings = {"train__dtype": "bfloat16", "train__ema": 0.9, "train__valid_every": None}
    run_pretrain(tree_of(whole, data_dir, **settings, train__steps=4), 1)
    for steps in (2, 4):
        run_pretrain(tree_of(stopped, data_dir, **settings, train__steps=steps), 1)
    ours, theirs = (tensors_of(run / "checkpoints" / "step_4") for run in (stopped, whole))
    assert ours == theirs
    assert any("/ema/" in name for name in ours)


VEE = {**CUBE, "parallel__context": 2, "parallel__schedule": "zb_v", "parallel__virtual_stages": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [(CUBE, {"parallel__pipeline": 4}), (VEE, {"parallel__zero_group": 2})],
    ids=["cube, pipeline", "context and V, groups of shards"],
)
def test_run_resumed_on_other_layouts_reads_the_same_tokens_with_equal_losses(ranks, data_dir, first, second):
    """On eight ranks, then on four, then on one."""
    whole, moved = data_dir / "whole", data_dir / "moved"
    run_pretrain(tree_of(whole, data_dir), 1)
    ranks.run(run_pretrain, 8, tree_of(moved, data_dir, **first, train__steps=4), 8)
    ranks.run(run_pretrain, 4, tree_of(moved, data_dir, **second, train__steps=8), 4)
    run_pretrain(tree_of(moved, data_dir), 1)

    assert len(numbers_of(whole)) == len(numbers_of(moved)) == 12
    for expected, found in zip(numbers_of(whole), numbers_of(moved), strict=True):
        assert found[:2] == expected[:2]
        assert found[2:5] == pytest.approx(expected[2:5], rel=1e-10)
    assert numbers_of(moved)[-1][5] == pytest.approx(numbers_of(whole)[-1][5], rel=1e-10)


def test_sigterm_saves_a_step_that_all_ranks_agree_on_and_the_run_goes_on_from_it(ranks, data_dir):
    whole, stopped = data_dir / "whole", data_dir / "stopped"
    settings = {"parallel__tensor": 2, "train__steps": 16, "train__valid_every": None, "checkpoint__every": None}
    ranks.run(run_pretrain, 2, tree_of(whole, data_dir, **settings), 2)

    process = start_pretrain(tree_of(stopped, data_dir, **settings), 2)
    wait_for_step(stopped, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    ended = json.loads((stopped / "exit.json").read_text(encoding="utf-8"))
    assert (ended["code"], ended["reason"].split(" after ")[0]) == (0, "stopped at a signal"), output
    step = len(numbers_of(stopped))
    assert step < 16
    assert (stopped / "checkpoints" / f"step_{step}" / "index.json").exists()

    ranks.run(run_pretrain, 2, tree_of(stopped, data_dir, **settings), 2)
    without_valid = [numbers[:5] for numbers in numbers_of(whole)]
    assert [numbers[:5] for numbers in numbers_of(stopped)] == without_valid


def test_one_process_exits_with_0_at_sigterm(data_dir):
    tree = tree_of(data_dir / "run", data_dir, train__steps=10_000, optim__decay_steps=10_000)
    process = start_pretrain(tree, 1)
    wait_for_step(data_dir / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def one_line(text: str) -> str:
    """The last line, which must not be a traceback's."""
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"parallel__tensor": 3}, 2, "parallel.tensor"),
        ({"train__global_batch_size": 7, "train__micro_batch_size": 2}, 2, "train.global_batch_size = 7"),
        ({"model__vocab_size": 50}, 3, "vocab_size is 50"),
        ({"data__train": [{"prefix": "no/such"}]}, 3, "no/such"),
    ],
    ids=["tensor does not divide", "batch does not divide", "token outside the vocabulary", "no data"],
)
def test_what_cannot_work_ends_in_one_line_and_its_exit_code(data_dir, changes, code, words):
    process = start_pretrain(tree_of(data_dir / "run", data_dir, **changes), 1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert words in one_line(output)
    ended = json.loads((data_dir / "run" / "exit.json").read_text(encoding="utf-8"))
    assert (ended["code"], ended["rank"]) == (code, 0)
    assert words in ended["reason"]
