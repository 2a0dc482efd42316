"""A stage does each task once, whatever happens, and leaves nothing in its folder that no row names."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel
from support.curation_work import Copy, Misbehave

from megatron_lite.curation.engine import File, Pool, Stage, Task, run_stage
from megatron_lite.curation.engine.identity import fingerprint
from megatron_lite.curation.engine.manifest import NAME, read_rows
from megatron_lite.curation.engine.stage import file_checksum
from megatron_lite.errors import DataError, MegatronLiteError, UsageError
from megatron_lite.files import partial_path

TEXTS = [f"text {number}\n" * (number + 1) for number in range(7)]


class Serial:
    """An engine without processes."""

    def map(self, function, items):
        yield from ((index, function(item)) for index, item in enumerate(items))

    def close(self):
        pass


@pytest.fixture
def inputs(tmp_path: Path) -> list[File]:
    (tmp_path / "in").mkdir()
    return [write(tmp_path / f"in/{number}.txt", text) for number, text in enumerate(TEXTS)]


def write(path: Path, text: str) -> File:
    path.write_text(text)
    return File(str(path), len(text), file_checksum(path))


def copy_stage(tmp_path: Path, inputs: list[File], capitals: bool = False) -> Stage:
    tasks = [Task(f"{number:05}", (file,)) for number, file in enumerate(inputs)]
    return Stage("copy", Copy(str(tmp_path / "log"), capitals), tasks)


def runs(tmp_path: Path) -> Counter:
    return Counter((tmp_path / "log").read_text().split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if not name.endswith(NAME)}


def test_rows_come_in_the_order_of_tasks_with_what_was_written_and_counted(tmp_path, inputs):
    rows = run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert [row.counts for row in rows] == [{"bytes": len(text)} for text in TEXTS]
    for row, text in zip(rows, TEXTS, strict=True):
        (copy,), (length,) = row.outputs["copies"], row.outputs["lengths"]
        assert Path(copy.path).read_text() == text and Path(length.path).read_text() == str(len(text))
        assert (copy.bytes, copy.xxh3) == (len(text), file_checksum(Path(copy.path)))
        assert row.input_bytes == len(text)


def test_a_finished_task_is_not_done_again(tmp_path, inputs):
    for _ in range(2):
        rows = run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert set(runs(tmp_path).values()) == {1} and len(rows) == len(TEXTS)


def test_a_missing_or_resized_output_is_made_again(tmp_path, inputs):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    whole = files(tmp_path / "out/copy/copies")
    (tmp_path / "out/copy/copies/00002.txt").unlink()
    (tmp_path / "out/copy/copies/00004.txt").write_text("cut")
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert runs(tmp_path) == Counter({f"{number:05}": 1 + (number in (2, 4)) for number in range(7)})
    assert files(tmp_path / "out/copy/copies") == whole


def test_a_changed_input_redoes_its_task_alone(tmp_path, inputs):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    inputs[3] = write(Path(inputs[3].path), "another")
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert runs(tmp_path) == Counter({f"{number:05}": 1 + (number == 3) for number in range(7)})
    assert (tmp_path / "out/copy/copies/00003.txt").read_text() == "another"


def test_changed_work_redoes_all_and_changing_it_back_too(tmp_path, inputs):
    for capitals in (False, True, False):
        run_stage(copy_stage(tmp_path, inputs, capitals), tmp_path / "out", Serial())
    assert set(runs(tmp_path).values()) == {3}
    assert (tmp_path / "out/copy/copies/00000.txt").read_text() == TEXTS[0]


def test_files_of_tasks_that_are_no_more_are_removed(tmp_path, inputs):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    (tmp_path / "out/copy/copies/00001.txt.0123.partial").write_text("left by a crash")
    run_stage(copy_stage(tmp_path, inputs[:2]), tmp_path / "out", Serial())
    assert set(outputs(tmp_path / "out/copy")) == {
        f"{kind}/{task}.txt" for kind in ("copies", "lengths") for task in ("00000", "00001")
    }


def test_somebody_elses_folder_is_left_alone(tmp_path, inputs):
    (tmp_path / "out/copy").mkdir(parents=True)
    (tmp_path / "out/copy/thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"copy: holds files and no manifest\.jsonl"):
        run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert outputs(tmp_path / "out/copy") == {"thesis.txt": b"years of work"}


def test_a_run_killed_while_it_began_its_first_manifest_goes_on(tmp_path, inputs):
    (tmp_path / "out/copy").mkdir(parents=True)
    partial_path(tmp_path / "out/copy" / NAME).write_text("")
    assert len(run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())) == len(TEXTS)


def test_a_row_cut_short_by_a_crash_is_no_row(tmp_path, inputs):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    manifest = tmp_path / "out/copy" / NAME
    manifest.write_bytes(manifest.read_bytes()[:-10])
    assert len(read_rows(manifest.parent)) == len(TEXTS) - 1
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    assert runs(tmp_path) == Counter({f"{number:05}": 1 + (number == 6) for number in range(7)})


def test_a_folder_can_be_moved(tmp_path, inputs):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "out", Serial())
    (tmp_path / "out").rename(tmp_path / "moved")
    rows = run_stage(copy_stage(tmp_path, inputs), tmp_path / "moved", Serial())
    assert set(runs(tmp_path).values()) == {1}
    assert all(file.path.startswith(str(tmp_path / "moved")) for row in rows for file in row.outputs["copies"])


def test_pool_and_ray_write_the_same_bytes_from_any_number_of_workers(tmp_path, inputs, ray_tasks):
    run_stage(copy_stage(tmp_path, inputs), tmp_path / "serial", Serial())
    with Pool(1) as one, Pool(3) as three:
        for name, engine in (("one", one), ("three", three), ("ray", ray_tasks)):
            run_stage(copy_stage(tmp_path, inputs), tmp_path / name, engine)
            assert outputs(tmp_path / name) == outputs(tmp_path / "serial")


def test_a_pool_runs_tasks_in_as_many_processes_as_asked(tmp_path):
    tasks = [Task(f"{number:05}", (), "sleep") for number in range(12)]
    with Pool(3) as pool:
        rows = run_stage(Stage("many", Misbehave(), tasks), tmp_path, pool)
    assert len({row.counts["pid"] for row in rows}) == 3


FAULTS = [
    ("die", MegatronLiteError, r"stage bad, task 00001: its worker was lost \(killed by SIGKILL.*same command goes on"),
    ("exit", MegatronLiteError, r"stage bad, task 00001: its worker was lost \(exit code 7\)"),
    ("bad data", DataError, "shard 3: no good"),
    ("no memory", MegatronLiteError, "stage bad, task 00001: out of memory"),
    ("full", MegatronLiteError, "stage bad, task 00001: .*No space left on device"),
    ("bug", ZeroDivisionError, "a bug"),
]


@pytest.mark.parametrize(("fault", "error", "message"), FAULTS)
def test_a_pool_names_the_task_that_failed_and_what_is_done_stands(tmp_path, fault, error, message):
    with Pool(1) as pool, pytest.raises(error, match=message):
        run_stage(faulty(fault), tmp_path, pool)
    assert list(read_rows(tmp_path / "bad")) == ["00000"]
    with Pool(2) as pool:
        run_stage(faulty("sleep"), tmp_path, pool)
    assert set(outputs(tmp_path / "bad")) == {"half/00000.txt", "half/00001.txt", "half/00002.txt"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [("die", r"stage bad, task 00001: its worker was lost \("), ("bad data", "shard 3: no good")],
)
def test_ray_names_the_task_that_failed_too(tmp_path, fault, message, ray_tasks):
    with pytest.raises(MegatronLiteError, match=message):
        run_stage(faulty(fault), tmp_path, ray_tasks)


def faulty(fault: str) -> Stage:
    return Stage("bad", Misbehave(), [Task(f"{n:05}", (), fault if n == 1 else "sleep") for n in range(3)])


@dataclass(frozen=True)
class Parameters:
    threshold: float
    names: tuple[str, ...] = ()
    path: str = field(default="", metadata={"identity": False})


class Section(BaseModel):
    threshold: float


def test_a_fingerprint_changes_with_every_value_that_counts_and_with_nothing_else():
    base = fingerprint(Parameters(0.5, ("a", "b")))
    assert base == fingerprint(Parameters(0.5, ("a", "b"), path="/elsewhere"))
    others = [
        Parameters(0.25, ("a", "b")),
        Parameters(0.5, ("ab",)),
        Parameters(0.5, ("b", "a")),
        Section(threshold=0.5),
    ]
    assert len({base, *(fingerprint(other) for other in others)}) == len(others) + 1
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [lambda: 0, object(), {1, 2}, Path("x")])
def test_what_is_no_plain_data_has_no_fingerprint(value):
    with pytest.raises(TypeError, match="no plain data"):
        fingerprint((1, value))
