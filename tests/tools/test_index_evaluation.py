"""The tool writes a table of evaluation sets that finds their items, and says what it holds of each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lite.curation.rules.evaluation_ngrams import open_table
from megatron_lite.errors import UsageError
from tools.index_evaluation import files_of, main

TOOL = Path(__file__).parents[2] / "tools" / "index_evaluation.py"
QUESTION = "How many of the nine birds that sat on the old wire flew away at noon?"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True)


def test_a_table_of_two_sets(tmp_path: Path) -> None:
    (tmp_path / "birds-1.jsonl").write_text(json.dumps({"q": QUESTION, "a": "four"}) + "\n", encoding="utf-8")
    (tmp_path / "birds-2.jsonl").write_text(json.dumps({"q": "Too short."}) + "\n", encoding="utf-8")
    (tmp_path / "lines.txt").write_text("one two three four five six seven eight\n", encoding="utf-8")
    output = tmp_path / "t.ngrams"
    done = run("--output", str(output), f"birds={tmp_path}/birds-*.jsonl", f"lines={tmp_path}/lines.txt")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert rows == [["birds", "2", "1", "5", "0"], ["lines", "1", "0", "1", "0"]]
    table = open_table(output)
    found = table.find(f"He asked: {QUESTION} Nobody knew.").passages
    assert [(*table.name_of(passage.item), passage.words) for passage in found] == [("birds", 0, 16)]


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "t"), f"birds={tmp_path}/none-*.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: birds={tmp_path}/none-*.jsonl: must be NAME=FILES with a file that is there\n"
    assert not (tmp_path / "t").exists()


def test_a_name_may_come_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert files_of([f"x={tmp_path}/b", f"x={tmp_path}/a"]) == {"x": [f"{tmp_path}/b", f"{tmp_path}/a"]}


def test_words_are_8_to_50(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(QUESTION, encoding="utf-8")
    done = run("--output", str(tmp_path / "t"), f"a={tmp_path}/a.txt", "--words", "5")
    assert (done.returncode, done.stderr) == (2, "error: n-grams of 5 words: 8 to 50 are possible\n")


def test_benchmarks_are_indexed_by_the_names_of_the_evaluation(tmp_path: Path) -> None:
    """From a folder of documents: two subjects of MMLU are one set, and what is not there is named."""
    for task, split, question in (
        ("mmlu_virology", "test", QUESTION),
        ("mmlu_anatomy", "test", "Which of the two bones of the lower arm turns when the hand does?"),
        ("openbookqa", "test", "A fish that lives far below the surface of the sea is known for its own light"),
    ):
        (tmp_path / task).mkdir()
        document = {"id": "left out of what is looked for", "question": question, "choices": {"text": ["four"]}}
        (tmp_path / task / f"{split}.jsonl").write_text(json.dumps(document) + "\n", encoding="utf-8")
    (tmp_path / "toxigen").mkdir()
    output = tmp_path / "t.ngrams"
    asked = "mmlu_anatomy,mmlu_virology,openbookqa,safety"
    done = run("--output", str(output), "--tasks", asked, "--include-path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    # n-grams of 13 words: of 15 and 17 words (question and choice) 3 and 5, of 18 words 6
    assert rows == [["mmlu", "2", "0", "8", "0"], ["openbookqa", "1", "0", "6", "0"]]
    assert "toxigen: missing: no package carries its documents: give DIR/toxigen/test.jsonl" in done.stderr
    table = open_table(output)
    assert [table.name_of(passage.item) for passage in table.find(f"{QUESTION} four").passages] == [("mmlu", 1)]
    assert not table.find("left out of what is looked for, left out of what is looked for").passages


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tasks", "piqqa"], "--tasks piqqa: no benchmark of the battery; did you mean piqa?"),
        (
            ["--tasks", "toxigen"],
            "--tasks toxigen: no package carries its documents: give DIR/toxigen/test.jsonl by --include-path DIR",
        ),
        (
            ["--tasks", "piqa", "--include-path", "no/folder"],
            "--include-path no/folder: must be a folder with documents",
        ),
        ([], "nothing to index: give --tasks, or sets as NAME=FILES"),
    ],
)
def test_benchmarks_that_are_unknown_or_not_here_are_named(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        main(["--output", str(tmp_path / "t"), *arguments])
    assert str(raised.value) == complaint
    assert not (tmp_path / "t").exists()
