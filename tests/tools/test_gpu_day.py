"""The GPU day's command: sections that fail, hang and die, and toys of whole days."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu.day import Day, command_for, run_sections
from gpu.findings import FILE, Findings, read
from gpu.plan import PLANS, Section
from gpu.small import far

ROOT = Path(__file__).parents[2]


def run_day(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/gpu_day.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def planted(programs: dict[str, str], folder: Path, seconds: float = 60, limit: int = 30) -> list[dict]:
    """The findings of a day whose sections are these programs."""
    sections = [Section(name, limit, "planted") for name in programs]
    run_sections(sections, lambda one: [sys.executable, "-c", programs[one.name]], folder, seconds)
    return read(folder)


def test_a_section_that_fails_or_dies_is_a_line_and_the_next_runs(tmp_path):
    programs = {
        "raises": "raise SystemExit(3)",
        "killed": "import os; os.kill(os.getpid(), 11)",
        "fine": "print('fine')",
    }
    found = planted(programs, tmp_path)
    assert [(one["section"], one["what"], one.get("died")) for one in found] == [
        ("raises", "ended", "exit code 3"),
        ("killed", "ended", "signal SIGSEGV"),
        ("fine", "ended", None),
    ]


def test_a_section_that_outlives_its_limit_ends_with_what_it_started_and_keeps_its_findings(tmp_path):
    # A child of its own writes, after the limit, what nobody may find.
    late = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w').close()"
    hangs = f"""
import subprocess, sys, time
line = '{{"section": "hangs", "what": "found", "value": 1}}' + chr(10)
open({str(tmp_path / FILE)!r}, "a").write(line)
subprocess.Popen([sys.executable, "-c", {late!r}])
time.sleep(60)
"""
    start = time.monotonic()
    found = planted({"hangs": hangs, "fine": "print(1)"}, tmp_path, limit=1)
    assert [(one["section"], one["what"], one.get("died")) for one in found] == [
        ("hangs", "found", None),
        ("hangs", "ended", "over its limit of 1 s"),
        ("fine", "ended", None),
    ]
    time.sleep(max(0, start + 3 - time.monotonic()))
    assert not (tmp_path / "late").exists()


def test_a_section_for_which_no_time_is_left_is_skipped_with_a_line(tmp_path):
    (only,) = planted({"late": "print('never')"}, tmp_path, seconds=3)
    assert only["section"] == "late" and only["skipped"].startswith("3 s of the day's 3 were left")


def test_an_exception_in_a_section_is_a_finding_that_names_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    command = [sys.executable, "-m", "gpu", "no_such_section", "--out", str(tmp_path), "--toy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (finding,) = read(tmp_path)
    assert finding["what"] == "raised" and finding["error"].startswith("ModuleNotFoundError: No module named")


def test_lines_of_several_processes_do_not_mix(tmp_path):
    program = (
        "import sys; from pathlib import Path; from gpu.findings import Findings\n"
        f"for i in range(200): Findings(Path({str(tmp_path)!r}), sys.argv[1]).say('x', i=i, text='y' * 3000)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(n)], env=environment, stdout=subprocess.DEVNULL)
        for n in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    found = [(one["section"], one["i"]) for one in read(tmp_path)]
    assert sorted(found) == sorted((str(n), i) for n in range(3) for i in range(200))


def test_what_json_has_no_number_for_is_written_in_words(tmp_path):
    Findings(tmp_path, "s").say("x", nan=float("nan"), inf=float("inf"), path=Path("a"), pair=(1, True, None))
    (line,) = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "section": "s", "what": "x", "nan": "nan", "inf": "inf", "path": "a", "pair": [1, True, None],
    }  # fmt: skip


def test_distance_is_the_largest_relative_one_of_any_loss_or_norm():
    assert far([(2.0, 1.0), (4.0, 3.3)], [(2.0, 1.0), (4.0, 3.0)]) == pytest.approx(0.1)


@pytest.mark.parametrize("ranks", PLANS)
def test_the_plan_fits_its_names_and_every_section_has_a_file(ranks):
    names = [section.name for section in PLANS[ranks]]
    assert len(set(names)) == len(names)
    for name in names:
        assert (ROOT / "tools" / "gpu" / "sections" / f"{name}.py").exists()


def test_the_sections_limits_leave_a_day_of_under_ten_minutes_for_the_first_seven():
    """The last may be cut short: they come in order of value."""
    assert sum(section.seconds for section in PLANS[1][:7]) <= 570


def test_a_section_that_is_not_in_the_plan_is_refused():
    done = run_day("--sections", "facts,layouts")
    assert done.returncode == 2
    assert "--sections layouts: with --ranks 1 there are facts, stage, " in done.stderr


def test_drawing_again_without_findings_is_refused(tmp_path):
    done = run_day("--draw", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: --draw: there is no {tmp_path}/results.jsonl\n")


def test_two_sections_as_a_toy_leave_their_findings_and_a_page(tmp_path):
    done = run_day("--toy", "--sections", "facts,nccl", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = read(tmp_path)
    assert found[0] == {"section": "day", "what": "start", "toy": True, "ranks": 1, "limit_s": 2280.0}
    assert {one["section"] for one in found} == {"day", "facts", "nccl"}
    assert [one["section"] for one in found if one["what"] == "ended"] == ["facts", "nccl"]
    calls = [one for one in found if one["what"] == "calls"]
    assert {one["call"] for one in calls} >= {"all_gather", "reduce_scatter", "all_reduce", "all_to_all"}
    assert all(one["unchanged"] for one in calls)
    assert done.stdout.splitlines()[-1] == f"{len(found)} findings, 0 failed: {tmp_path}/page.html"
    page = (tmp_path / "page.html").read_text()
    assert "A toy" in page and "torch 2." in page


def assert_complete(folder: Path, ranks: int) -> None:
    found = read(folder)
    ended = {one["section"]: one for one in found if one["what"] == "ended"}
    assert list(ended) == [section.name for section in PLANS[ranks]]
    assert not [one for one in ended.values() if "died" in one or "skipped" in one]
    for name in ended:
        assert [one for one in found if one["section"] == name and one["what"] != "ended"], name


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", PLANS)
def test_a_whole_day_as_a_toy_passes_every_finding(tmp_path, ranks):
    done = run_day("--toy", "--ranks", str(ranks), "--out", str(tmp_path), timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert_complete(tmp_path, ranks)


def test_a_sections_command_says_where_and_whether_it_is_a_toy():
    assert command_for(Day(Path("/out"), True), "facts")[1:] == ["-m", "gpu", "facts", "--out", "/out", "--toy"]
    assert command_for(Day(Path("/out"), False), "facts")[1:] == ["-m", "gpu", "facts", "--out", "/out"]
