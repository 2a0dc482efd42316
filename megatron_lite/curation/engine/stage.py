"""A stage: one piece of work, done once for each of many tasks, that survives any crash.

Work is a pure function from files to files. It writes under temporary names; then the files are put on the disk and
renamed, and last the task's row joins the stage's manifest. A task whose row stands, with its files in place and with
the same work and inputs as now, is not done again. Which task does what is decided by the configuration alone, never by
the number of workers, so any engine writes the same bytes.

A stage's folder:

    manifest.jsonl            a row a finished task
    KIND/TASK.jsonl.zst       what the tasks wrote, in a folder a kind ("kept", "dropped", "hashes", ...)

The folder is the stage's own: what no row names is removed when the stage starts.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import xxhash

from megatron_lite.curation.engine.identity import fingerprint
from megatron_lite.curation.engine.manifest import NAME, File, Row, append_row, read_rows, write_rows
from megatron_lite.curation.engine.pool import Engine, WorkerLost
from megatron_lite.curation.shards import ENDING
from megatron_lite.errors import MegatronLiteError, UsageError
from megatron_lite.files import partial_path, publish
from megatron_lite.progress import Progress


class Outputs:
    """Where a task writes. Files lie under temporary names until `publish`."""

    def __init__(self, folder: Path, task: str):
        self._folder, self._task = folder, task
        # A worker that outlived a killed run must not write into the same file.
        self._mark = f"{uuid.uuid4().hex}.partial"
        self._files: dict[str, list[tuple[Path, Path]]] = {}  # kind: (temporary, final)

    def path(self, kind: str, ending: str = ENDING) -> Path:
        """A temporary path for the next file of a kind; most tasks write one of each."""
        files = self._files.setdefault(kind, [])
        name = f"{self._task}_{len(files):04}" if files else self._task
        final = self._folder / kind / f"{name}{ending}"
        final.parent.mkdir(parents=True, exist_ok=True)
        files.append((final.with_name(f"{final.name}.{self._mark}"), final))
        return files[-1][0]

    def publish(self) -> dict[str, list[File]]:
        """Give all files their names, once their bytes are on the disk."""
        published: dict[str, list[File]] = {}
        for kind, files in self._files.items():
            for temporary, final in files:
                checksum = file_checksum(temporary)
                publish(final, temporary)
                published.setdefault(kind, []).append(File(str(final), final.stat().st_size, checksum))
        return published


@dataclass(frozen=True)
class Task:
    """One call of a stage's work. Names sort as the tasks do: "00012"."""

    name: str
    inputs: tuple[Any, ...]  # what it reads: File, or anything with `bytes` and a fingerprint
    argument: Any = None  # what else tells it from the others, such as the number of a range
    weight: int = field(default=0, metadata={"identity": False})  # bytes it reads of what stands in the work


class Work(Protocol):
    """A frozen dataclass of plain data, which is its identity; heavy things are built in the worker.

    What all tasks read stands in its fields, as File. Returns counts as JSON values. `version` is raised when the code
    makes other results of the same inputs: what stands of the old one is made again.
    """

    version: ClassVar[int]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Stage:
    name: str  # the name of its folder
    work: Work
    tasks: Sequence[Task]


@dataclass(frozen=True)
class DoTask:
    """What an engine runs for a task and its key: the work, then the files' names. Returns the row."""

    work: Work
    folder: Path

    def __call__(self, item: tuple[Task, str]) -> Row:
        task, key = item
        outputs = Outputs(self.folder, task.name)
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            counts = self.work(task, outputs)
            files = outputs.publish()
        except MemoryError:
            raise MegatronLiteError(f"{self._describe(task)}: out of memory") from None
        except OSError as error:
            raise MegatronLiteError(f"{self._describe(task)}: {error}") from error
        except Exception as error:
            error.add_note(self._describe(task))
            raise
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        return Row(task.name, key, input_bytes(task), files, counts, seconds, cpu_seconds)

    def _describe(self, task: Task) -> str:
        return f"stage {self.folder.name}, task {task.name}"


def in_place(row: Row) -> bool:
    """Whether all its files are there, as long as they were."""
    for file in (file for files in row.outputs.values() for file in files):
        path = Path(file.path)
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
    return True


def intact(row: Row) -> bool:
    """Whether all its files are there and hold what they held: reads every byte."""
    files = [file for made in row.outputs.values() for file in made]
    return in_place(row) and all(file_checksum(Path(file.path)) == file.xxh3 for file in files)


def run_stage(stage: Stage, parent: Path, engine: Engine, stands: Callable[[Row], bool] = in_place) -> list[Row]:
    """Do what is not done; returns the rows of all tasks in their order.

    `stands` says whether a finished task's files are still what they were: `in_place`, the default, or `intact`.
    Raises MegatronLiteError where a worker died, and whatever the work raises; what is finished by then stands.
    """
    folder, work_key = parent / stage.name, fingerprint(stage.work)
    keys = {task.name: fingerprint(work_key, task) for task in stage.tasks}
    rows = {name: row for name, row in read_rows(folder).items() if row.key == keys.get(name) and stands(row)}
    finished = [rows[task.name] for task in stage.tasks if task.name in rows]
    clean(folder, finished)
    todo = [(task, keys[task.name]) for task in stage.tasks if task.name not in rows]
    done = sum(row.input_bytes for row in finished)
    with Progress(stage.name, done + sum(input_bytes(task) for task, _ in todo), done) as progress:
        try:
            for _, row in engine.map(DoTask(stage.work, folder), todo):
                append_row(folder, row)
                rows[row.task] = row
                done += row.input_bytes
                progress.advance(done, f"{len(rows)} of {len(stage.tasks)} tasks")
        except WorkerLost as lost:
            task, _ = todo[lost.index]
            raise MegatronLiteError(
                f"stage {stage.name}, task {task.name}: its worker was lost ({lost.how}); {len(rows)} of "
                f"{len(stage.tasks)} tasks stand, the same command goes on from there. {describe_inputs(task)}"
            ) from None
    return [rows[task.name] for task in stage.tasks]


def clean(folder: Path, rows: Sequence[Row]) -> None:
    """Leave the rows' files and a manifest of just these rows.

    Raises UsageError for a folder with files and without a manifest: no stage has made it.
    """
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if NAME not in names and names - {partial_path(NAME).name}:  # that is of a run killed as it began
        raise UsageError(f"{folder}: holds files and no {NAME}; name an output folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    # The rows go before the files: a row never stands for a file that another task's crash has replaced.
    write_rows(folder, rows)
    kept = {file.path for row in rows for files in row.outputs.values() for file in files}
    for kind in (entry for entry in folder.iterdir() if entry.is_dir()):
        for path in kind.iterdir():
            if str(path) not in kept:
                path.unlink()


def input_bytes(task: Task) -> int:
    return task.weight + sum(file.bytes for file in task.inputs)


def describe_inputs(task: Task) -> str:
    paths = [file.path for file in task.inputs]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"It was reading {paths[0]}{more}" if paths else ""


def file_checksum(path: Path) -> str:
    """xxh3 of a file's bytes, 64 bits in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
