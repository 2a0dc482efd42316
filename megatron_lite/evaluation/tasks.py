"""Finds what an evaluation asks for: the harness's tasks, over documents of a package or of a folder of the user's.

Imports lm-eval, so only rank 0 of an evaluation imports this module, and late.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval
from jinja2 import UndefinedError
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from megatron_lite.config.complaints import suggest
from megatron_lite.errors import DataError, UsageError
from megatron_lite.evaluation.battery import (
    BATTERY,
    BENCHMARKS,
    BY_TASK,
    EXECUTES_CODE,
    GROUPS,
    MMLU_GROUPS,
    MMLU_TASKS,
    Benchmark,
    expand,
)
from megatron_lite.evaluation.code_execution import check_confinement
from megatron_lite.evaluation.documents import Split, dataset, evaluated_split, find_splits, lack

STOCK = Path(lm_eval.__file__).parent / "tasks"
NEW = 256  # tokens of an answer, where a task does not say
DOCUMENTS = "megatron_lite.evaluation.documents.dataset"
WITHOUT_LEAVE = "executes the code that the model writes: give --allow-code-execution"
LOADING = logging.getLogger("lm_eval.api.task")
CONFINED = "confined"
FUNCTIONS = "megatron_lite.evaluation.human_eval"  # in place of the harness's, which execute code without limits


@dataclass(frozen=True)
class Found:
    """`tasks` and `manager` go to `simple_evaluate`; `missing` has a reason for each part of a group that is not here.

    `tasks` are loaded, of `names` in their order: groups of the harness, or single tasks.
    """

    names: tuple[str, ...]
    tasks: tuple[Task | Group, ...]
    manager: TaskManager
    missing: Mapping[str, str]


def find_tasks(
    names: Sequence[str], include: Path | None = None, code_execution: bool = False, shots: int | None = None,
    longest: int | None = None,
) -> Found:  # fmt: skip
    """The tasks of `names`: those of the folder `include` first, then the battery and its groups, then the harness's.

    What a group names and nothing carries goes to `missing`, as does what may be answered with as many tokens as the
    model can read, `longest`, or more. Raises UsageError for a name that nothing knows, for one
    that is asked for itself and is not here, where nothing is here, for code that may not be executed, for a task in
    two of the names, and for shots that a task cannot show; DataError for documents that are not what a task asks for.
    """
    own = _names_in(include)
    splits = {b.task: find_splits(b, include) for b in BENCHMARKS if b.task not in own}
    lacks = {task: reason for task in splits if (reason := lack(BY_TASK[task], splits[task]))}
    if not code_execution:
        lacks |= {task: WITHOUT_LEAVE for task in EXECUTES_CODE if task in splits}
    if mmlu := [reason for task, reason in lacks.items() if task in MMLU_TASKS]:
        lacks |= dict.fromkeys(set(MMLU_GROUPS) - own, mmlu[0])
    asked = expand(names, own)
    for name in names:
        if name in lacks:
            raise UsageError(f"task {name}: {lacks[name]}")
    here = tuple(name for name in asked if name not in lacks)
    if not here:
        raise UsageError(f"nothing of {', '.join(names)} is here; {asked[0]}: {lacks[asked[0]]}")
    if set(here) & set(EXECUTES_CODE) - own:
        check_confinement()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tasks"
        _write_files(folder, {task: splits[task] for task in splits if task not in lacks})
        manager = TaskManager(include_path=[folder, include] if include else folder, include_defaults=False)
        with _quiet():
            tasks = tuple(part for name in here for part in _load(manager, name, include))
    _refuse_twice(tasks)
    _refuse_other_code(tasks)
    _refuse_shots(tasks, shots)
    found = Found(here, tasks, manager, {name: lacks[name] for name in asked if name in lacks})
    return found if longest is None else _without_long_answers(found, names, longest)


def _names_in(include: Path | None) -> set[str]:
    if include is None:
        return set()
    if not include.is_dir():
        raise UsageError(f"--include-path {include}: must be a folder with task files or documents")
    return set(TaskManager(include_path=str(include), include_defaults=False).all_tasks)


def _write_files(folder: Path, splits: Mapping[str, Mapping[str, Split]]) -> None:
    """Task files into `folder`, which is new, and beside it those of the harness that execute code, with our functions:
    whatever an included file names is imported, and the harness's would reach for a hub and execute without limits.
    """
    folder.mkdir()
    for task, found in splits.items():
        _write_task(folder, BY_TASK[task], found)
    for group in MMLU_GROUPS:
        (folder / f"_{group}.yaml").write_text(f"include: {STOCK}/mmlu/default/_{group}.yaml\n", encoding="utf-8")
    for file in (STOCK / "humaneval").glob("*.yaml"):
        copy = folder.parent / CONFINED / "humaneval" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8").replace("!function utils.", f"!function {FUNCTIONS}.")
        copy.write_text(text, encoding="utf-8")


def _write_task(folder: Path, benchmark: Benchmark, splits: Mapping[str, Split]) -> None:
    """The harness's task file over other documents; nothing that makes a prompt or a metric is said again."""
    evaluated = evaluated_split(benchmark, splits)
    shown = benchmark.shown if benchmark.shown in splits else None
    stock = folder.parent / CONFINED if benchmark.task in EXECUTES_CODE else STOCK
    fields = {
        "include": str(stock / benchmark.file),
        "task": benchmark.task,
        "dataset_kwargs": {"splits": {n: {"file": str(s.file), "form": s.form} for n, s in splits.items()}},
        "training_split": None,
        "validation_split": evaluated if evaluated == "validation" else None,
        "test_split": evaluated if evaluated == "test" else None,
        "fewshot_split": shown,
        "num_fewshot": benchmark.shots if shown == benchmark.shown else 0,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]  # JSON is YAML
    text = "\n".join([*lines, f"custom_dataset: !function {DOCUMENTS}", ""])
    (folder / f"{benchmark.task}.yaml").write_text(text, encoding="utf-8")


def _load(manager: TaskManager, name: str, include: Path | None) -> list[Task | Group]:
    """The group or the tasks of a name that `manager` knows, or else the harness."""
    if name not in manager.all_tasks:
        manager = TaskManager(include_path=include)
    if name not in manager.all_tasks:
        known = {*manager.all_tasks, *GROUPS, BATTERY}
        raise UsageError(f"task {name}: neither the harness nor --include-path knows it{suggest(name, known)}")
    try:
        loaded = manager.load([name])
    except (OSError, ValueError) as error:  # what `datasets` raises for a data set that it can neither find nor fetch
        raise UsageError(f"task {name}: its documents are not here: {' '.join(str(error).split())}") from None
    except (KeyError, UndefinedError) as error:  # of the harness's templates, over a document that a folder gave
        raise DataError(f"task {name}: a document lacks what the task's file asks for: {error}") from None
    groups: Mapping[str, Group] = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the harness says of every task with documents of its own, and bars of work that takes a second."""
    datasets.disable_progress_bars()
    LOADING.addFilter(_says_something)
    try:
        yield
    finally:
        LOADING.removeFilter(_says_something)
        datasets.enable_progress_bars()


def _says_something(record: logging.LogRecord) -> bool:
    return "Custom kwargs can be passed" not in record.getMessage()


def _leaves(tasks: Sequence[Task | Group]) -> list[Task]:
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def _without_long_answers(found: Found, names: Sequence[str], longest: int) -> Found:
    """Raises UsageError where one of them was asked for by its name, or nothing is left."""
    most = {_name(task): max(map(_new_tokens, _leaves([task]))) for task in found.tasks}
    long = {
        name: f"may be answered with {new} tokens: must be fewer than the {longest} that the model reads"
        for name, new in most.items()
        if new >= longest
    }
    for name in long:
        if name in names or long.keys() == most.keys():
            raise UsageError(f"task {name}: {long[name]}")
    kept = tuple(task for task in found.tasks if _name(task) not in long)
    return Found(tuple(n for n in found.names if n not in long), kept, found.manager, {**found.missing, **long})


def _name(task: Task | Group) -> str:
    return task.name if isinstance(task, Group) else task.task_name


def _new_tokens(task: Task) -> int:
    """That an answer may have at most."""
    if task.OUTPUT_TYPE != "generate_until":
        return 0
    return normalize_gen_kwargs(dict(task.get_config("generation_kwargs") or {}), NEW)["max_gen_toks"]


def _refuse_twice(tasks: Sequence[Task | Group]) -> None:
    """The harness would, with a traceback."""
    names = [leaf.task_name for leaf in _leaves(tasks)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"task {name}: is asked for twice, by itself or in groups; once is right")


def _refuse_other_code(tasks: Sequence[Task | Group]) -> None:
    for task in _leaves(tasks):
        if task.get_config("unsafe_code") and task.get_config("custom_dataset") is not dataset:
            raise UsageError(
                f"task {task.task_name}: the harness would execute its code without limits; "
                f"only {', '.join(EXECUTES_CODE)} is executed here"
            )


def _refuse_shots(tasks: Sequence[Task | Group], shots: int | None) -> None:
    """The harness would ask a task that states 0 shots without any, whatever was asked for."""
    for task in _leaves(tasks):
        if shots and task.get_config("num_fewshot") == 0:
            raise UsageError(f"{shots} shots: {task.task_name} has no examples that could be shown")
