"""The comparison of checkpoints: the files' numbers, the best of each line, and what two standard errors tell apart."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import compare_evaluations
import pytest

from megatron_lite.errors import DataError, UsageError
from megatron_lite.evaluation.page import cells, comparison, read_evaluation

HOSTILE = "</td><script>alert(1)</script>&<b>"


def write(path: Path, numbers: dict, checkpoint: str | None = None, higher: bool = True, documents: int = 100) -> Path:
    """A file of results: of each task the value and the standard error of `acc`."""
    results = {
        "results": {task: {"alias": task, "acc,none": v, "acc_stderr,none": e} for task, (v, e) in numbers.items()},
        "configs": {task: {"test_split": "test"} for task in numbers},
        "n-shot": dict.fromkeys(numbers, 0),
        "n-samples": {task: {"original": 100, "effective": documents} for task in numbers},
        "higher_is_better": {task: {"acc": higher} for task in numbers},
        "group_subtasks": {},
    }
    path.write_text(json.dumps(results if checkpoint is None else {"checkpoint": checkpoint, **results}))
    return path


class Table(HTMLParser):
    """The text of each cell, line by line, over all tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.lines.append([])
        if tag in ("th", "td"):
            self.lines[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("th", "td")

    def handle_data(self, data):
        if self.open:
            self.lines[-1][-1] += data


@pytest.fixture
def files(tmp_path) -> list[Path]:
    numbers = {200: {"piqa": (0.625, 0.01), "own": (0.5, 0.05)}, 100: {"piqa": (0.5, 0.02), "own": (0.4375, 0.05)}}
    return [write(tmp_path / f"{n}.json", given, f"r/mine/checkpoints/step_{n}") for n, given in numbers.items()]


def test_the_table_has_the_numbers_of_the_files_in_the_order_of_the_steps(files):
    lines = Table(comparison([read_evaluation(path) for path in files])).lines
    remark = "test, 0 shots, 100 documents"
    assert lines[0] == ["task", "mine step 100", "mine step 200"]
    piqa, own = lines[1], lines[3]
    assert piqa[0].startswith("piqa, acc" + remark) and own[0] == "own, acc" + remark
    assert piqa[1:] == ["▼ 0.5000± 0.0200", "★ 0.6250± 0.0100"]
    assert own[1:] == ["0.4375± 0.0500", "★ 0.5000± 0.0500"]


@pytest.mark.parametrize("beyond", [False, True])
def test_a_value_is_behind_beyond_two_standard_errors_of_the_difference(tmp_path, beyond):
    # sqrt(0.03^2 + 0.04^2) = 0.05: the mark begins at a difference of 0.1
    given = {"best": (0.75, 0.03), "other": (0.75 - 0.1 - (1e-9 if beyond else -1e-9), 0.04)}
    columns = [read_evaluation(write(tmp_path / f"{name}.json", {"piqa": one})) for name, one in given.items()]
    (key,) = columns[0].rows
    best, other = cells(key, columns)
    assert (best.best, best.behind, other.best, other.behind) == (True, False, False, beyond)


def test_where_lower_is_better_the_lowest_is_the_best(tmp_path):
    given = {"a": (8.0, 0.1), "b": (7.0, 0.1), "c": (7.0, "N/A")}
    columns = [read_evaluation(write(tmp_path / f"{n}.json", {"p": one}, higher=False)) for n, one in given.items()]
    (key,) = columns[0].rows
    found = cells(key, columns)
    assert [cell.best for cell in found] == [False, True, True]
    assert [cell.behind for cell in found] == [True, False, False]


def test_values_of_other_documents_stand_in_lines_of_their_own(tmp_path):
    given = {"a": 100, "b": 20}
    read = [read_evaluation(write(tmp_path / f"{n}.json", {"p": (0.5, 0.1)}, documents=d)) for n, d in given.items()]
    lines = Table(comparison(read)).lines[1:]
    assert [line[1:] for line in lines] == [["0.5000± 0.1000", "–"], ["–", "0.5000± 0.1000"]]


def test_charts_have_a_point_a_step_and_a_line_a_run(tmp_path):
    given = {("mine", 100): 0.25, ("mine", 200): 0.5, ("other", 100): 0.375, ("foreign", None): 0.75}
    read = []
    for (run, step), value in given.items():
        checkpoint = run if step is None else f"{run}/checkpoints/step_{step}"
        read.append(read_evaluation(write(tmp_path / f"{run}{step}.json", {"piqa": (value, 0.01)}, checkpoint)))
    page = comparison(read)
    points = set(re.findall(r"<title>(\w+) at (\d+): ([\d.]+)</title>", page))
    assert points == {("1", "100", "0.25"), ("1", "200", "0.5"), ("2", "100", "0.375")}
    assert re.findall(r"<li>.*</svg> (.*)</li>", page) == ["1: mine", "2: other"]
    assert re.findall(r'<path class="line-(\w+)" d="M[^"]*L', page) == ["run0"]


def test_names_are_text_and_nothing_else(tmp_path):
    steps = (1, 2)
    read = [
        read_evaluation(write(tmp_path / f"{n}.json", {HOSTILE: (0.5, 0.1)}, f"{HOSTILE.replace('/', '')}/step_{n}"))
        for n in steps
    ]
    page = comparison(read)
    assert "<script" not in page and "<b>&" not in page and HOSTILE in unescape(page)
    assert not re.findall(r"(src|href)=", page)


@pytest.mark.parametrize("place", ["", "evaluation"])
def test_a_step_is_found_in_the_files_own_name_where_it_names_no_checkpoint(tmp_path, place):
    directory = tmp_path / "mine" / place
    directory.mkdir(parents=True)
    read = read_evaluation(write(directory / "step_300.json", {"p": (0.5, 0.1)}))
    assert (read.run, read.step) == ("mine", 300)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": {"p": {"acc,none": 1}}}', '{"results": {"p": 3}}'])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"f\.json: must be a file of lm-eval's results"):
        read_evaluation(path)


def test_the_command_writes_the_page_or_says_what_is_wrong(tmp_path, files, monkeypatch, capsys):
    def run(*arguments: Path) -> None:
        monkeypatch.setattr("sys.argv", ["compare_evaluations.py", *map(str, arguments)])
        compare_evaluations.main()

    target = tmp_path / "page.html"
    run(*files, Path("--output"), target)
    assert capsys.readouterr().out == f"{target}\n"
    assert "mine step 200" in target.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="must be a file in a directory that exists"):
        run(*files, Path("--output"), tmp_path / "none" / "page.html")
    with pytest.raises(DataError, match=r"absent\.json: No such file"):
        run(tmp_path / "absent.json", Path("--output"), target)
