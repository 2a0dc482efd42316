"""Checkpoints side by side over training steps: files of lm-eval's results as one page that opens without a network.

Values are compared only where task, metric, split, shots and number of documents are the same. Two differ when they are
more than two standard errors of their difference apart, the errors taken as independent: on the same documents they are
not quite, which makes the mark the more careful one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isfinite
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_lite.errors import DataError
from megatron_lite.evaluation.battery import GROUPS
from megatron_lite.evaluation.table import Row, rows
from megatron_lite.page import render
from megatron_lite.training.charts import Series, line_chart

STYLES = 6  # of lines, which the template has colours for
OTHERS = "other tasks"
Key = tuple[str, str, str, str, int]  # task, metric, split, shots, documents


@dataclass(frozen=True)
class Evaluated:
    """A file. `run` and `step`: of RUN/checkpoints/step_N or RUN/evaluation/step_N.json, else a name and None."""

    run: str
    step: int | None
    rows: Mapping[Key, Row]
    better: Mapping[Key, bool]  # whether higher is; without those of which the harness does not say

    @property
    def name(self) -> str:
        return self.run if self.step is None else f"{self.run} step {self.step:,}"


@dataclass(frozen=True)
class Cell:
    """A value in the table. `behind`: it differs from the best one by more than two standard errors."""

    value: float
    error: float | None
    best: bool
    behind: bool


def read_evaluation(path: Path) -> Evaluated:
    """Raises DataError for a file that does not hold lm-eval's results."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        found = {_key(row): row for row in _outer_rows(results)}
        directions = results.get("higher_is_better", {})
        better = {key: directions.get(row.task, {}).get(row.metric.split(" ")[0]) for key, row in found.items()}
        checkpoint = Path(str(results.get("checkpoint", path.resolve().with_suffix(""))))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: must be a file of lm-eval's results, as evaluate --output writes it") from None
    if not found:
        raise DataError(f"{path}: holds no result of any task")
    step = re.fullmatch(r"step_(\d+)", checkpoint.name)
    run = checkpoint.name
    if step is not None:
        above = checkpoint.parent
        run = (above.parent if above.name in ("checkpoints", "evaluation") else above).name or "run"
    known = {key: value for key, value in better.items() if value is not None}
    return Evaluated(run, int(step[1]) if step else None, found, known)


def comparison(evaluated: Sequence[Evaluated]) -> str:
    """The page, of one file or more; those with a step come first, in the order of their steps."""
    columns = sorted(evaluated, key=lambda one: (one.step is None, one.step or 0))
    keys = list(dict.fromkeys(key for one in columns for key in one.rows))
    sections = [(title, [_line(key, columns) for key in members]) for title, members in _sections(keys)]
    charts = [(title, _charts(members, columns)) for title, members in _sections(keys)]
    values = {
        "name": "Evaluations side by side",
        "kind": "evaluation",
        "summary": [f"{len(columns)} checkpoints", f"{len({key[0] for key in keys})} tasks"],
        "figures": [],
        "columns": [one.name for one in columns],
        "sections": sections,
        "charts": [(title, drawn) for title, drawn in charts if drawn],
        "runs": _runs(columns),
    }
    return render("evaluation/page.html", values)


def cells(key: Key, columns: Sequence[Evaluated]) -> list[Cell | None]:
    """A line of the table; None where a checkpoint has no such value."""
    there = [one.rows.get(key) for one in columns]
    finite = [row for row in there if row is not None and isfinite(row.value)]
    higher = next((one.better[key] for one in columns if key in one.better), None)
    if len(finite) < 2 or higher is None:
        return [None if row is None else Cell(row.value, row.error, False, False) for row in there]
    best = (max if higher else min)(finite, key=lambda row: row.value)
    return [
        None if row is None else Cell(row.value, row.error, row.value == best.value, differ(row, best)) for row in there
    ]


def differ(one: Row, other: Row) -> bool:
    """By more than two standard errors of the difference, sqrt(a^2 + b^2); never where one has no error."""
    if one.error is None or other.error is None:
        return False
    return abs(one.value - other.value) > 2 * hypot(one.error, other.error)


def _outer_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """A group of the harness stands for the tasks in it."""
    groups = results.get("group_subtasks", {})
    inner = {part for parts in groups.values() for part in parts if part not in groups}
    return (row for row in rows(results) if row.task not in inner)


def _key(row: Row) -> Key:
    return row.task, row.metric, row.split, row.shots, row.documents


def _sections(keys: Sequence[Key]) -> list[tuple[str, list[Key]]]:
    """By the battery's groups, in their order; a task of several stands in the first."""
    found: dict[str, list[Key]] = {title: [] for title in (*GROUPS, OTHERS)}
    for key in keys:
        title = next((title for title, tasks in GROUPS.items() if key[0] in tasks or _is_part(key[0], tasks)), OTHERS)
        found[title].append(key)
    return [(title, members) for title, members in found.items() if members]


def _is_part(task: str, tasks: Sequence[str]) -> bool:
    return "mmlu" in tasks and task.startswith("mmlu_")


def _line(key: Key, columns: Sequence[Evaluated]) -> dict[str, Any]:
    task, metric, split, shots, documents = key
    settings = {one.rows[key].setting for one in columns if key in one.rows}
    return {
        "task": task,
        "metric": metric,
        "remark": f"{split}, {shots} shots, {documents:,} documents",
        "setting": " ".join(sorted(settings)),
        "cells": cells(key, columns),
    }


def _runs(columns: Sequence[Evaluated]) -> list[str]:
    """Their numbers, from 1 on, stand for them in charts, where names of any length have no room."""
    return list(dict.fromkeys(one.run for one in columns if one.step is not None))


def _charts(keys: Sequence[Key], columns: Sequence[Evaluated]) -> list[tuple[str, Markup]]:
    """A chart for each line of the table that some run has at two steps or more, with a series a run."""
    runs = _runs(columns)
    drawn = []
    for key in keys:
        series = []
        for number, run in enumerate(runs):
            points = [
                (float(one.step), one.rows[key].value)
                for one in columns
                if one.run == run and one.step is not None and key in one.rows and isfinite(one.rows[key].value)
            ]
            if points:
                series.append(Series(str(number + 1), points, f"run{number % STYLES}", dots=True))
        if any(len(one.points) > 1 for one in series):
            title = f"{key[0]}, {key[1]}"
            drawn.append((title, Markup(line_chart(title, series, size=(330, 210)))))
    return drawn
