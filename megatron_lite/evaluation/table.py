"""The results of an evaluation as a table: what was measured, how sure it is, and whether its setting is published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lite.evaluation.battery import BY_TASK, MMLU, Published

HEADINGS = ("task", "metric", "value", "error", "split", "shots", "documents", "setting")


@dataclass(frozen=True)
class Row:
    """One metric of a task or of a group, of which `split` and `shots` have all that occur.

    `setting` is `published`, what differs from the published one, or empty where the battery knows of none.
    """

    task: str
    metric: str
    value: float
    error: float | None  # standard error; None where the harness has none
    split: str
    shots: str
    documents: int
    setting: str


def table(results: Mapping[str, Any]) -> str:
    """lm-eval's results, and what is missing from them (`missing`: a reason by name), as aligned text.

    A group of the harness has its whole and its parts that are groups again; how many tasks they hold stands below.
    """
    groups = results.get("group_subtasks", {})
    inner = {leaf for group in groups for leaf in _leaves(results, group)}
    lines = _aligned([HEADINGS, *(_cells(row) for row in rows(results) if row.task not in inner)])
    parts = {part for group in groups.values() for part in group}
    lines += [f"{group}: {len(_leaves(results, group))} tasks" for group in groups if group not in parts]
    lines += [f"{name}: missing: {reason}" for name, reason in results.get("missing", {}).items()]
    return "\n".join(lines)


def rows(results: Mapping[str, Any]) -> list[Row]:
    """All metrics of all tasks and groups of lm-eval's results, in their order."""
    return [row for task, numbers in results["results"].items() for row in _rows_of(results, task, numbers)]


def _rows_of(results: Mapping[str, Any], task: str, numbers: Mapping[str, Any]) -> Iterator[Row]:
    leaves = _leaves(results, task)
    configs = [results["configs"][leaf] for leaf in leaves]
    splits = sorted({config.get("test_split") or config.get("validation_split") or "" for config in configs})
    shots = sorted({results["n-shot"][leaf] for leaf in leaves})
    documents = sum(results["n-samples"][leaf]["effective"] for leaf in leaves)
    for key, value in numbers.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        error = numbers.get(f"{metric}_stderr,{chosen}")
        yield Row(
            task,
            metric if chosen == "none" else f"{metric} ({chosen})",
            value,
            error if isinstance(error, float) else None,
            " ".join(splits),
            " ".join(str(number) for number in shots),
            documents,
            _setting(_published(task), metric, " ".join(splits), shots, documents),
        )


def _published(task: str) -> Published | None:
    if task == "mmlu":
        return MMLU
    return BY_TASK[task].published if task in BY_TASK else None


def _setting(published: Published | None, metric: str, split: str, shots: Sequence[int], documents: int) -> str:
    """Whether a figure may stand beside published ones, and if not, why."""
    if published is None or metric not in published.metrics:
        return ""
    differs = []
    if split != published.split:
        differs.append(f"split {published.split}")
    if list(shots) != [published.shots]:
        differs.append(f"{published.shots} shots")
    if documents != published.documents and split == published.split:
        differs.append(f"{published.documents:,} documents")
    return f"published with {', '.join(differs)}" if differs else "published"


def _leaves(results: Mapping[str, Any], name: str) -> list[str]:
    """The single tasks of a group, or the task itself."""
    parts = results.get("group_subtasks", {}).get(name)
    return [leaf for part in parts for leaf in _leaves(results, part)] if parts else [name]


def _cells(row: Row) -> tuple[str, ...]:
    error = "" if row.error is None else f"± {row.error:.4f}"
    return row.task, row.metric, f"{row.value:.4f}", error, row.split, row.shots, f"{row.documents:,}", row.setting


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines in columns; figures stand at the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    right = {HEADINGS.index(name) for name in ("value", "error", "shots", "documents")}
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
