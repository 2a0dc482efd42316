"""metrics.jsonl keeps every digit, survives a kill, and is cut back at resume."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_lite.errors import DataError
from megatron_lite.training.metrics import MetricsWriter, StepMetrics, read_metrics, rewind

STEP = StepMetrics(
    step=1,
    tokens=64,
    loss=1 / 3,
    grad_norm=math.pi,
    lr=3e-4,
    seconds=0.1,
    data_seconds=0.001,
    tokens_per_second=640.0,
    mfu=None,
    memory_bytes=1 << 30,
    memory_kind="resident_set_peak",
)


def write(run_dir: Path, first: int, last: int, *, losses: float = 0.0) -> None:
    with MetricsWriter(run_dir, start_step=first - 1, total_steps=last) as writer:
        for step in range(first, last + 1):
            writer.write(replace(STEP, step=step, loss=losses + step))


def test_a_line_has_the_contracts_fields_and_floats_with_all_their_digits() -> None:
    line = json.loads(STEP.to_json())
    assert list(line) == [
        "step",
        "tokens",
        "loss",
        "grad_norm",
        "lr",
        "seconds",
        "data_seconds",
        "tokens_per_second",
        "mfu",
        "memory_bytes",
        "memory_kind",
    ]
    assert f'"loss": {1 / 3!r}' in STEP.to_json()
    assert line["grad_norm"] == math.pi
    assert line["mfu"] is None


def test_validation_loss_and_z_loss_stand_only_on_the_steps_that_have_them() -> None:
    line = json.loads(replace(STEP, valid_loss=2.5, z_loss=1e-4).to_json())
    assert (line["valid_loss"], line["z_loss"]) == (2.5, 1e-4)


def test_each_validation_set_has_its_loss_under_its_name(tmp_path: Path) -> None:
    metrics = replace(STEP, valid_loss=2.0, named={"valid_loss/web": 1.5, "valid_loss/code/python": 2.5})
    line = json.loads(metrics.to_json())
    assert (line["valid_loss/web"], line["valid_loss/code/python"]) == (1.5, 2.5)
    assert "named" not in line
    with MetricsWriter(tmp_path, start_step=0, total_steps=1) as writer:
        writer.write(metrics)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("valid_loss/code/python")] == [2.5]


def test_numbers_can_be_added_to_the_last_step_and_to_no_other(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, start_step=0, total_steps=3) as writer:
        assert writer.last() == {}
        for step in (1, 2):
            writer.write(replace(STEP, step=step))
        writer.add(2, {})
        assert writer.last() == json.loads(replace(STEP, step=2).to_json())
        writer.add(2, {"evaluation/piqa/acc": 0.1 + 0.2})
        with pytest.raises(ValueError, match="step 1 is not the last"):
            writer.add(1, {"evaluation/piqa/acc": 0.5})
        writer.write(replace(STEP, step=3))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record.get("evaluation/piqa/acc") for record in records] == [None, 0.1 + 0.2, None]
    assert records[1] == json.loads(replace(STEP, step=2).to_json()) | {"evaluation/piqa/acc": 0.1 + 0.2}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("evaluation/piqa/acc")] == [2]


def test_every_step_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, start_step=0, total_steps=2) as writer:
        writer.write(STEP)
        assert read_metrics(tmp_path / "metrics.jsonl") == [json.loads(STEP.to_json())]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    write(tmp_path, 4, 6, losses=10.0)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in records] == [1.0, 2.0, 3.0, 14.0, 15.0, 16.0]


def test_rewinding_leaves_the_kept_lines_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path, 1, 4, losses=1 / 7)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    rewind(path, 2)
    assert path.read_bytes() == b"".join(lines[:2])
    assert [file.name for file in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


def test_a_line_torn_by_a_kill_is_dropped_and_a_broken_line_before_it_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(STEP.to_json() + "\n" + '{"step": 2, "lo')
    rewind(path, 2)
    assert path.read_text() == STEP.to_json() + "\n"
    path.write_text("broken\n" + STEP.to_json() + "\n")
    with pytest.raises(DataError, match="line 1"):
        rewind(path, 2)


def test_tensorboard_shows_the_resumed_run_as_one_curve(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    write(tmp_path, 4, 6, losses=10.0)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 14.0),
        (5, 15.0),
        (6, 16.0),
    ]
    assert set(board.Tags()["scalars"]) <= set(asdict(STEP))


def test_a_log_gets_plain_lines_for_the_first_the_last_and_every_validated_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsWriter(tmp_path, start_step=0, total_steps=4) as writer:
        for step in range(1, 5):
            writer.write(replace(STEP, step=step, valid_loss=2.0 if step == 3 else None))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "3/4", "4/4"]
    assert "loss 0.3333  valid 2.0000" in lines[1]
