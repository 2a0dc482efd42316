"""The commands after pretraining as a user starts them: what is wrong ends them in one line, with its exit code."""

import json

import numpy as np
import pytest
from support.aligning import dialogue, run_align, tree_of, write_lines, write_rows
from support.runs import metrics_of, start

from megatron_lite.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def spoiled(data_dir, tmp_path):
    """Dialogues of which the second has two answers in a row, the fourth an empty one."""
    rows = [{"messages": dialogue(np.random.default_rng(seed))} for seed in range(6)]
    rows[1]["messages"].append({"role": "assistant", "content": "again"})
    rows[3]["messages"][-1]["content"] = ""
    return write_lines(tmp_path / "spoiled.jsonl", rows)


def test_bad_rows_end_the_command_before_anything_is_trained(data_dir, spoiled, tmp_path):
    run_dir = tmp_path / "run"
    process = start("sft", tree_of("sft", run_dir, data_dir, data__train=[{"path": str(spoiled)}]), 1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert f"{spoiled} line 2: " in told[0]
    assert "2 of 6 rows are bad" in told[0]
    assert "data.bad_rows = skip" in told[0]
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 3
    assert not (run_dir / "metrics.jsonl").exists()
    assert not list(run_dir.rglob("*.store.json"))


def test_bad_rows_that_may_be_left_out_are_named_and_counted(data_dir, spoiled, tmp_path, caplog):
    run_dir = tmp_path / "run"
    changes = {"data__train": [{"path": str(spoiled)}], "data__bad_rows": "skip", "train__steps": 1}
    run_align("sft", tree_of("sft", run_dir, data_dir, **changes), 1)
    assert len(metrics_of(run_dir)) == 1
    trained = json.loads((run_dir / "rows.json").read_text())["sets"][0]
    assert (trained["rows"], trained["samples"], sum(trained["bad"].values())) == (6, 4, 2)
    named = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert any(f"{spoiled} line 2: " in line for line in named)
    assert any(f"{spoiled} line 4: " in line for line in named)


def test_a_file_of_which_no_row_is_left_is_named(data_dir, tmp_path):
    path = write_lines(tmp_path / "nothing.jsonl", [{"text": "a document"}] * 3)
    changes = {"data__train": [{"path": str(path)}], "data__bad_rows": "skip"}
    with pytest.raises(DataError, match=rf"^{path}: none of its rows is left: 3 rows.*3 left out"):
        run_align("sft", tree_of("sft", tmp_path / "run", data_dir, **changes), 1)
