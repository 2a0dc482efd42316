"""The command: exit codes, one line where something is wrong, and the same corpus however often it was killed."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.curation_corpus import config_of, write_corpus, written

from megatron_lite.config.load import dump

TOOL = Path(__file__).parents[2] / "tools" / "curate_data.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


def configuration(corpus: Path, folder: Path, **changes) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump(config_of(corpus, folder / "out", **changes)))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(TOOL), *map(str, arguments)]


def curate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True)


@dataclass(frozen=True)
class Whole:
    """An unbroken run."""

    result: subprocess.CompletedProcess[str]
    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Whole:
    folder, started = tmp_path_factory.mktemp("whole"), time.monotonic()
    result = curate(configuration(corpus, folder), "workers=2")
    return Whole(result, folder, time.monotonic() - started)


def test_a_run_ends_with_the_report_and_a_line_a_stage(whole):
    assert whole.result.returncode == 0, whole.result.stderr
    report, header, *lines = whole.result.stdout.splitlines()
    assert report == f"{whole.folder}/out/report.html" and Path(report).exists()
    names = "ingest filter url text fuzzy paragraphs lines substring train valid"
    assert header.startswith("stage") and [line.split()[0] for line in lines] == names.split()
    assert json.loads((whole.folder / "out/report.json").read_text())["workers"] == 2


def test_the_resolved_configuration_is_printed_and_gives_itself_again(corpus, tmp_path):
    first = curate(configuration(corpus, tmp_path), "shard_bytes=5000", "--print-config")
    assert first.returncode == 0 and yaml.safe_load(first.stdout)["shard_bytes"] == 5000
    (tmp_path / "again.yaml").write_text(first.stdout)
    assert curate(tmp_path / "again.yaml", "--print-config").stdout == first.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shard_byte=1", "error: shard_byte = 1: unknown key; did you mean shard_bytes"),
        ("sources.web.kind=jsn", "error: sources.web.kind = jsn: must be .*; did you mean jsonl"),
        ("sources.web.paths=[/nowhere/*]", "error: sources.web.paths: nothing is at /nowhere/"),
        ("dedup.previous=[/nowhere]", "error: dedup.previous = /nowhere: no report.json is there"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_one_line_and_exit_code_2(override, message, corpus, tmp_path):
    result = curate(configuration(corpus, tmp_path), override)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert re.match(message, last), result.stderr


def test_a_damaged_shard_of_a_stage_is_named_with_exit_code_3_and_made_anew_by_verify(corpus, whole, tmp_path):
    path = configuration(corpus, tmp_path)
    assert curate(path).returncode == 0
    shard = next((tmp_path / "out/stages/ingest/documents").iterdir())
    data = bytearray(shard.read_bytes())
    data[-20] ^= 255  # as long as before, so that only reading finds it
    shard.write_bytes(data)
    result = curate(path, "rules.web.gopher_quality.min_words=2", "rules.code.code.max_lines=7")
    assert result.returncode == 3 and str(shard) in result.stderr.splitlines()[-1]
    assert curate(path, "--verify").returncode == 0
    assert written(tmp_path / "out") == written(whole.folder / "out")


def test_ctrl_c_stops_with_a_line_and_the_same_command_goes_on(corpus, tmp_path):
    path = configuration(corpus, tmp_path)
    process = subprocess.Popen(command(path), stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out/stages/ingest/manifest.jsonl")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "error: stopped by SIGINT; the same command goes on from there"
    assert curate(path).returncode == 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.002)


def kill_at_random(corpus: Path, folder: Path, whole: Whole, kills: int, *engine: str, start: float = 0.0) -> None:
    """Kill a run so many times at moments spread over as long as a whole run takes; then its corpus is the same.

    `start`: seconds that the engine takes before it begins.
    """
    order, path = random.Random(str(engine)), configuration(corpus, folder)
    for _ in range(kills):
        process = subprocess.Popen(command(path, *engine), stderr=subprocess.DEVNULL)
        try:
            process.wait(start + order.uniform(0.2, 1.0) * whole.seconds)
            for name in ("stages/fuzzy", "corpus"):  # it had finished: something for the next one to do
                for file in (folder / "out" / name).rglob("*.zst"):
                    file.unlink()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    result = curate(path, *engine)
    assert result.returncode == 0, result.stderr
    assert written(folder / "out") == written(whole.folder / "out")


def test_killed_at_any_moment_the_same_command_comes_to_the_same_corpus(corpus, whole, tmp_path):
    kill_at_random(corpus, tmp_path, whole, 2, "workers=2")


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_ten_times_from_any_number_of_workers_it_is_the_same_corpus(workers, corpus, whole, tmp_path):
    kill_at_random(corpus, tmp_path, whole, 10, f"workers={workers}")


@pytest.mark.nightly
def test_killed_thirty_times_while_ray_works_it_is_the_same_corpus(corpus, whole, tmp_path):
    kill_at_random(corpus, tmp_path, whole, 30, "workers=2", "engine=ray", start=3.0)
