"""How a job of several ranks ends: one reason in exit.json, one line, the right codes, and no rank left waiting."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.runs import tree_of, write_tokens

# Each rank runs this; FAIL is what it does once the ranks have met (or before, in EARLY).
PROGRAM = """
import sys, time
from datetime import timedelta
from pathlib import Path
from megatron_lite.errors import DataError, UsageError
from megatron_lite.place import find_place
from megatron_lite.launch import joined_world, run_job

place = find_place()

def job(ending):
    {early}
    with joined_world(place, "cpu", timedelta(seconds=60), None) as world:
        ending.ranks_have_met(world.words)
        {fail}
        world.words.exchange("", "a file")
        return "done"

run_job(Path(sys.argv[1]), place, job)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(run_dir: Path, fail: str = "", early: str = "", world: int = 3) -> list[tuple[int, str]]:
    """(exit code, stderr) of each rank, started side by side as srun would, with nobody to end the others."""
    program = PROGRAM.format(fail=fail or "...", early=early or "...")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(run_dir)],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    return [(process.returncode, err) for process in ranks for err in [process.communicate(timeout=120)[1]]]


def ending_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "exit.json").read_text(encoding="utf-8"))


def test_one_ranks_bad_data_ends_all_ranks_with_its_line_once_and_its_code_in_exit_json(tmp_path: Path) -> None:
    ended = run_ranks(tmp_path, "if place.rank == 1: raise DataError('shard 7: cut short')")
    assert ending_of(tmp_path) == {"code": 3, "rank": 1, "reason": "shard 7: cut short"}
    assert [code for code, _ in ended] == [1, 3, 1]
    assert ended[1][1] == "error: shard 7: cut short\n"
    for rank in (0, 2):
        assert "Traceback" not in ended[rank][1]
        assert f"rank {rank} ends after another failed" in ended[rank][1]


def test_an_error_that_all_ranks_find_is_printed_once(tmp_path: Path) -> None:
    ended = run_ranks(tmp_path, "raise UsageError('x = 1: must be 2')")
    assert [code for code, _ in ended] == [2, 2, 2]
    assert "".join(err for _, err in ended) == "error: x = 1: must be 2\n"
    assert ending_of(tmp_path)["code"] == 2


def test_an_unforeseen_exception_prints_one_traceback(tmp_path: Path) -> None:
    ended = run_ranks(tmp_path, "if place.rank == 2: 1 / 0")
    assert [code for code, _ in ended] == [1, 1, 1]
    assert [err.count("Traceback") for _, err in ended] == [0, 0, 1]
    assert ending_of(tmp_path) == {"code": 1, "rank": 2, "reason": "ZeroDivisionError: division by zero"}


def test_a_good_end_replaces_an_earlier_jobs_failure(tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text('{"code": 3, "rank": 5, "reason": "long ago"}')
    assert [code for code, _ in run_ranks(tmp_path)] == [0, 0, 0]
    assert ending_of(tmp_path) == {"code": 0, "rank": 0, "reason": "done"}


def test_a_failure_before_a_slow_first_rank_has_started_is_kept(tmp_path: Path) -> None:
    """Rank 1 fails at once, by itself in the job; rank 0 comes to the run directory only afterwards."""
    (tmp_path / "exit.json").write_text('{"code": 0, "rank": 0, "reason": "long ago"}')
    fails = PROGRAM.format(fail="...", early="raise DataError('no disk')")
    starts = PROGRAM.format(fail="...", early="import os; os._exit(15)")  # as torchrun would end it, still waiting
    for rank, program, code in ((1, fails, 3), (0, starts, 15)):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, timeout=120)
        assert done.returncode == code
    assert ending_of(tmp_path) == {"code": 3, "rank": 1, "reason": "no disk"}


@pytest.mark.parametrize(
    ("override", "line", "in_run_dir"),
    [
        ("parallel.tensr=2", "did you mean", False),
        ("parallel.tensor=3", "parallel.tensor = 3", True),
    ],
)
def test_torchrun_shows_a_bad_configuration_once(tmp_path: Path, override: str, line: str, in_run_dir: bool) -> None:
    write_tokens(tmp_path / "train", 2000)
    write_tokens(tmp_path / "valid", 300)
    run_dir = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree_of(run_dir, tmp_path)), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    command = [sys.executable, *torchrun, "-m", "megatron_lite.pretrain", str(config), override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1  # torchrun's own for any failed rank
    (shown,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line in shown
    if in_run_dir:
        assert ending_of(run_dir)["code"] == 2


def test_a_rank_that_waits_for_a_word_ends_when_another_fails(tmp_path: Path) -> None:
    """Nothing else would end it: nobody started these ranks that could end them."""
    ended = run_ranks(tmp_path, "if place.rank == 1: time.sleep(0.5); raise DataError('disk full')")
    assert [code for code, _ in ended] == [1, 3, 1]
    assert ending_of(tmp_path) == {"code": 3, "rank": 1, "reason": "disk full"}
    for rank in (0, 2):
        assert ended[rank][1] == f"rank {rank} ends after another failed: a file: rank 1: disk full\n"


def test_the_rank_that_holds_the_store_stays_until_the_others_have_heard_of_a_failure(tmp_path: Path) -> None:
    late = "if place.rank == 2: from megatron_lite.parallel import words; words._pause = lambda _: time.sleep(2.0)"
    fails = "if place.rank == 1: time.sleep(0.5); raise DataError('disk full')"
    ended = run_ranks(tmp_path, f"{late}\n        {fails}")
    assert [err for _, err in ended] == [
        "rank 0 ends after another failed: a file: rank 1: disk full\n",
        "error: disk full\n",
        "rank 2 ends after another failed: a file: rank 1: disk full\n",
    ]


def test_ranks_with_different_devices_are_refused_before_any_group_is_made(tmp_path: Path) -> None:
    other = "from megatron_lite import launch; device = launch.local_device; "
    other += "launch.local_device = lambda *a: device(*a) if place.rank else (launch.torch.device('xpu', 0), 'xpu')"
    ended = run_ranks(tmp_path, early=other)
    assert [code for code, _ in ended] == [2, 2, 2]
    assert ending_of(tmp_path)["reason"] == (
        "device = auto: gives cpu on ranks 1, 2, xpu on ranks 0; all must have one kind, ask for cuda or cpu"
    )
