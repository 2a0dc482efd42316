"""A run's numbers over its steps, as charts: the loss, what its algorithm counts beside it, each validation set apart.

A chart without a finite point is left out, so each algorithm has the curves of the numbers that it writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from math import isfinite, sqrt
from typing import Any

from markupsafe import Markup

from megatron_lite.training.benchmarks import PREFIX
from megatron_lite.training.charts import Level, Point, Series, line_chart
from megatron_lite.training.metrics import StepMetrics

Records = Sequence[Mapping[str, Any]]
Named = list[tuple[str, Markup]]  # a chart and what it is of

VALID = "valid_"  # before the names of validation's numbers in metrics.jsonl
# Of what an objective counts; another number is called by its name.
TITLES = {
    "accuracy": "accuracy: pairs whose chosen answer is ahead",
    "margin": "margin of chosen over rejected answers",
    "score": "mean score",
    "deviation": "standard deviation of scores",
    "nll": "−log p of chosen answers, nats a token",
    "chosen_logprob": "log-probability of chosen answers",
    "rejected_logprob": "log-probability of rejected answers",
}
TOGETHER = ("chosen_logprob", "rejected_logprob")
SMALL = (340, 230)
STYLES = [f"set-{letter}{dash}" for dash, letter in product(("", " dashed"), "abcdef")]


def loss_chart(records: Records, unit: str, unigram: float | None) -> Markup | None:
    lines = [
        *_training_lines(records, "loss", "training loss, each step"),
        *_validation_line(records, "loss", "validation loss"),
    ]
    level = Level("unigram model", unigram) if unigram is not None else None
    return Markup(line_chart(f"loss, {unit}", lines, level=level, size=(1000, 380))) if lines else None


def step_charts(records: Records) -> list[Markup]:
    """What every run has beside its loss."""
    titles = {
        "tokens_per_second": "tokens a second",
        "grad_norm": "gradient norm before clipping",
        "lr": "learning rate",
    }
    found = [(title, points(records, key)) for key, title in titles.items()]
    return [
        Markup(line_chart(title, [Series(title, line, "train")], from_zero=True, size=(320, 200)))
        for title, line in found
        if line
    ]


def objective_charts(records: Records) -> Named:
    """Of the numbers that the run's objective counts beside the loss, in training and in validation."""
    told = with_deviation(records)
    counted = objective_names(told)
    drawn = [(TITLES.get(name, name.replace("_", " ")), _both(told, name)) for name in counted if name not in TOGETHER]
    for where, prefix in (("training", ""), ("validation", VALID)):
        keys = [prefix + name for name in TOGETHER if name in counted]
        lines = [
            Series(key.removeprefix(prefix).partition("_")[0], points(told, key), style, dots=bool(prefix))
            for key, style in zip(keys, ("train", "valid"), strict=False)
        ]
        drawn.append((f"log-probability of answers, {where}", [line for line in lines if line.points]))
    return [(title, Markup(line_chart(title, lines, size=SMALL))) for title, lines in drawn if lines]


def objective_names(records: Records) -> list[str]:
    """Those of TITLES first; every step's line has them, but those of validation alone."""
    always = {field.name for field in fields(StepMetrics)} | {"score_square"}
    found = {key.removeprefix(VALID) for record in records for key in record if not key.startswith(PREFIX)}
    names = {name for name in found - always if "/" not in name and name != "bits_per_byte"}
    return sorted(names, key=lambda name: (list(TITLES).index(name) if name in TITLES else len(TITLES), name))


def with_deviation(records: Records) -> list[dict[str, Any]]:
    """The same, with the standard deviation of scores where their mean and their square's are known."""
    told = []
    for record in records:
        line = dict(record)
        for key in [key for key in record if key in ("score", f"{VALID}score") or key.startswith(f"{VALID}score/")]:
            square = record.get(key.replace("score", "score_square", 1))
            if square is not None:
                line[key.replace("score", "deviation", 1)] = sqrt(max(0.0, square - record[key] ** 2))
        told.append(line)
    return told


def set_charts(records: Records) -> Named:
    """Of what is known of several validation sets each, a line a set."""
    told = with_deviation(records)
    kinds: dict[str, list[str]] = {}
    for key in {key: None for record in told for key in record if key.startswith(VALID) and "/" in key}:
        kind, _, name = key.removeprefix(VALID).partition("/")
        kinds.setdefault(kind, []).append(name)
    charts = []
    for kind, names in kinds.items():
        lines = [(name, points(told, f"{VALID}{kind}/{name}")) for name in names]
        drawn = [Series(name, line, STYLES[i % len(STYLES)], dots=True) for i, (name, line) in enumerate(lines) if line]
        if len(drawn) > 1 and kind not in ("score_square", "bits_per_byte"):
            title = TITLES.get(kind, kind.replace("_", " "))
            charts.append((title, Markup(line_chart(title, drawn, size=SMALL))))
    return charts


def benchmark_charts(records: Records) -> Named:
    """One a task, with a line for each of its metrics; one that is no share of 1, such as perplexity, has its own.
    Standard errors are left to metrics.jsonl.
    """
    charts: dict[str, list[Series]] = {}
    for key in sorted({key for record in records for key in record if key.startswith(PREFIX)}):
        task, metric = key.removeprefix(PREFIX).rsplit("/", 1)
        line = points(records, key)
        if not line or "_stderr" in metric:
            continue
        share = all(0 <= value <= 1 for _, value in line)
        lines = charts.setdefault(task if share else f"{task}, {metric}", [])
        lines.append(Series(metric, line, ("train", "valid", "faint")[min(len(lines), 2)], dots=True))
    titles = {name: lines[0].name if len(lines) == 1 else name for name, lines in charts.items()}
    return [(name, Markup(line_chart(titles[name], charts[name], size=SMALL))) for name in sorted(charts)]


def _both(records: Records, name: str) -> list[Series]:
    return [*_training_lines(records, name, "each step"), *_validation_line(records, name, "validation")]


def _training_lines(records: Records, key: str, name: str) -> list[Series]:
    """Each step, and the mean around each of a long run's."""
    window = len(records) // 40 | 1  # odd, to have a middle
    line = points(records, key)
    if not line or window == 1:
        return [Series(name, line, "train")] if line else []
    return [
        Series(name, line, "faint"),
        Series(f"mean of {window} steps", _smooth(line, window), "train"),
    ]


def _validation_line(records: Records, key: str, name: str) -> list[Series]:
    line = points(records, VALID + key)
    return [Series(name, line, "valid", dots=True)] if line else []


def points(records: Records, key: str) -> list[Point]:
    """(step, value) where there is one and it is finite."""
    values = ((record["step"], record.get(key)) for record in records)
    return [(step, value) for step, value in values if value is not None and isfinite(value)]


def _smooth(line: Sequence[Point], window: int) -> list[Point]:
    """Means over `window` points around each; towards the ends over as many as lie on both sides."""
    means = []
    for middle, (x, _) in enumerate(line):
        radius = min(middle, len(line) - 1 - middle, window // 2)
        values = [y for _, y in line[middle - radius : middle + radius + 1]]
        means.append((x, sum(values) / len(values)))
    return means
