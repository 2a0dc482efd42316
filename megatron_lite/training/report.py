"""report.html: a run on one page that opens without a network.

It is drawn from what the run directory holds: config.yaml, layout.json and metrics.jsonl, and where they are there
unigram.json, sample.txt, the report of curation in curation/, and the sidecars of the data sets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from megatron_lite.config import Config, ModelConfig, Resolved, load_config
from megatron_lite.data.sidecar import Sidecar
from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish
from megatron_lite.model.model import schedule_of
from megatron_lite.page import render
from megatron_lite.parallel.pipeline.drawing import timeline_svg
from megatron_lite.parallel.pipeline.simulator import Costs, simulate
from megatron_lite.training.benchmarks import PREFIX
from megatron_lite.training.charts import Level, Series, format_number, line_chart
from megatron_lite.training.flops import flops_per_token, matmul_parameters
from megatron_lite.training.mesh_drawing import MAX_PANELS, describe, mesh_svg
from megatron_lite.training.metrics import read_metrics
from megatron_lite.training.run_files import read_layout

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class RecordedRun:
    """What a run directory holds; None where a file is not there."""

    directory: Path
    config: Config
    layout: Resolved
    records: Records
    unigram: float | None  # cross-entropy in nats a token
    sample: str | None
    corpus: dict[str, Any] | None


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report.html and return its path. Raises DataError for a directory that holds no run."""
    run = read_run(Path(run_dir))
    values = {
        "kind": "training",
        "name": run.directory.resolve().name,
        "summary": summarize(run),
        "figures": key_figures(run),
        "charts": charts(run),
        "validation": validation_rows(run.records),
        "benchmarks": benchmark_charts(run.records),
        "timeline": pipeline_timeline(run.config, run.layout),
        "mesh": mesh(run.config, run.layout),
        "corpus": corpus_rows(run.corpus) if run.corpus else None,
        "datasets": dataset_rows(run.config),
        "sample": run.sample,
        "unigram": run.unigram is not None,
        "valid_batches": run.config.train.valid_batches,
        "config": (run.directory / "config.yaml").read_text(encoding="utf-8"),
    }
    page = render("training/report_template.html", values)
    path = run.directory / "report.html"
    partial_path(path).write_text(page, encoding="utf-8")
    publish(path)
    return path


def read_run(directory: Path) -> RecordedRun:
    """Read what is there; raises DataError where config.yaml, layout.json or metrics.jsonl are not."""
    for name in ("config.yaml", "layout.json", "metrics.jsonl"):
        if not (directory / name).exists():
            raise DataError(f"{directory / name}: not there; a report is written from a run's own files")
    records = read_metrics(directory / "metrics.jsonl")
    if not records:
        raise DataError(f"{directory / 'metrics.jsonl'}: holds no finished step")
    unigram, sample, corpus = (directory / name for name in ("unigram.json", "sample.txt", "curation/report.json"))
    return RecordedRun(
        directory,
        load_config(directory / "config.yaml"),
        read_layout(directory),
        records,
        json.loads(unigram.read_text(encoding="utf-8"))["cross_entropy"] if unigram.exists() else None,
        sample.read_text(encoding="utf-8") if sample.exists() else None,
        json.loads(corpus.read_text(encoding="utf-8")) if corpus.exists() else None,
    )


def parameter_count(model: ModelConfig) -> int:
    """All weights: what tokens are multiplied by, the embedding where it is not the head, and the norms."""
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return matmul_parameters(model) + embedding + (2 * model.num_hidden_layers + 1) * model.hidden_size


def summarize(run: RecordedRun) -> list[str]:
    """The run in a few short phrases."""
    model, parallel, train = run.config.model, run.config.parallel, run.config.train
    return [
        f"{_short(parameter_count(model))} parameters",
        describe(run.layout),
        f"ZeRO-{parallel.zero_stage}",
        f"{parallel.schedule}, {run.layout.microbatches} microbatches" if run.layout.pipeline > 1 else "no pipeline",
        train.dtype,
        f"{train.global_batch_size} sequences × {train.sequence_length:,} tokens a step",
    ]


def key_figures(run: RecordedRun) -> list[tuple[str, str, str]]:
    """(value, name, remark) of the numbers one looks for first."""
    last, validated = run.records[-1], [record for record in run.records if "valid_loss" in record]
    figures = []
    if validated:
        figures.append((f"{validated[-1]['valid_loss']:.3f}", "validation loss", "nats a token, on unseen documents"))
        if "valid_bits_per_byte" in validated[-1]:
            bits = validated[-1]["valid_bits_per_byte"]
            figures.append((f"{bits:.3f}", "bits per byte", "of the same documents' text"))
    if run.unigram is not None:
        gap = "nats a token"
        if validated:
            gap = f"{run.unigram - validated[-1]['valid_loss']:.2f} nats above the trained model"
        figures.append((f"{run.unigram:.3f}", "unigram model", gap))
    figures.append((f"{last['loss']:.3f}", "training loss", f"at step {last['step']:,} of {run.config.train.steps:,}"))
    figures.append((_short(last["tokens"]), "tokens read", f"{_duration(run.records)} of training"))
    rate = median(record["tokens_per_second"] for record in run.records)
    cost = f"{_short(rate * flops_per_token(run.config.model, run.config.train.sequence_length))} model FLOP/s"
    figures.append((_short(rate), "tokens a second", f"median of the steps; {cost}"))
    if last["mfu"] is not None:
        figures.append((f"{median(record['mfu'] for record in run.records):.1%}", "MFU", "median of the steps"))
    waited = sum(record.get("data_seconds", 0.0) for record in run.records)
    share = waited / sum(record["seconds"] for record in run.records)
    figures.append((f"{share:.2%}", "waiting for data", "of the steps' time, on the first rank"))
    kind = last["memory_kind"].replace("_", " ")
    figures.append((f"{last['memory_bytes'] / 2**30:.2f} GiB", "memory", f"{kind}, fullest rank"))
    return figures


def charts(run: RecordedRun) -> dict[str, Markup]:
    """The loss, and what stands below it in small. A chart without a finite point is left out."""
    window = len(run.records) // 40 | 1  # odd, to have a middle
    loss = _points(run.records, "loss")
    lines = [Series("training loss, each step", loss, "train" if window == 1 else "faint")]
    if window > 1:
        lines.append(Series(f"mean over {window} steps", _smooth(loss, window), "train"))
    lines.append(Series("validation loss", _points(run.records, "valid_loss"), "valid", dots=True))
    lines = [line for line in lines if line.points]
    level = Level("unigram model", run.unigram) if run.unigram is not None else None
    drawn = {}
    if lines:
        drawn["loss"] = Markup(line_chart("loss, nats a token", lines, level=level, size=(1000, 380)))
    titles = {
        "tokens_per_second": "tokens a second",
        "grad_norm": "gradient norm before clipping",
        "lr": "learning rate",
    }
    for key, title in titles.items():
        points = _points(run.records, key)
        if points:
            drawn[key] = Markup(line_chart(title, [Series(title, points, "train")], from_zero=True, size=(320, 200)))
    return drawn


def benchmark_charts(records: Records) -> list[tuple[str, Markup]]:
    """(its name, the chart): one a task, with a line for each of its metrics; one that is no share of 1, such as
    perplexity, has its own. Standard errors are left to metrics.jsonl.
    """
    charts: dict[str, list[Series]] = {}
    for key in sorted({key for record in records for key in record if key.startswith(PREFIX)}):
        task, metric = key.removeprefix(PREFIX).rsplit("/", 1)
        points = _points(records, key)
        if not points or "_stderr" in metric:
            continue
        share = all(0 <= value <= 1 for _, value in points)
        lines = charts.setdefault(task if share else f"{task}, {metric}", [])
        lines.append(Series(metric, points, ("train", "valid", "faint")[min(len(lines), 2)], dots=True))
    titles = {name: lines[0].name if len(lines) == 1 else name for name, lines in charts.items()}
    return [(name, Markup(line_chart(titles[name], charts[name], size=(440, 260)))) for name in sorted(charts)]


def validation_rows(records: Records) -> list[tuple[str, str, str, str]]:
    """(validation set, its first loss, its last, bits per byte where they are known) where there are several."""
    loss, bits = "valid_loss/", "valid_bits_per_byte/"
    validated = [record for record in records if any(key.startswith(loss) for key in record)]
    names = [key.removeprefix(loss) for key in (validated[-1] if validated else ()) if key.startswith(loss)]
    if len(names) < 2:
        return []
    first, last = validated[0], validated[-1]
    return [
        (name, f"{first[loss + name]:.3f}", f"{last[loss + name]:.3f}",
         f"{last[bits + name]:.3f}" if bits + name in last else "")
        for name in names
    ]  # fmt: skip


def pipeline_timeline(config: Config, layout: Resolved) -> dict[str, Any] | None:
    """The schedule drawn with as many microbatches as show its phases; None without a pipeline."""
    if layout.pipeline == 1:
        return None
    drawn = min(layout.microbatches, 4 * layout.pipeline)
    schedule = schedule_of(config, layout, drawn)
    svg = timeline_svg(simulate(schedule, Costs()), "times of a forward")
    return {
        "svg": Markup(svg),
        "schedule": config.parallel.schedule,
        "drawn": drawn,
        "microbatches": layout.microbatches,
    }


def mesh(config: Config, layout: Resolved) -> dict[str, Any]:
    placement = schedule_of(config, layout, layout.microbatches).placement
    return {"svg": Markup(mesh_svg(layout, placement)), "left_out": max(0, layout.data - MAX_PANELS)}


def corpus_rows(curation: dict[str, Any]) -> dict[str, list[tuple[str, str, str, str]]]:
    """(name, documents, megabytes, dropped) of what curation read of its sources and of the splits it dealt them to."""
    parts: dict[str, list] = {"sources": [], "splits": []}
    for name, flow in curation["stages"][0]["sources"].items():
        kept = sum(part[name]["left"][0] for part in curation["corpus"].values() if name in part)
        parts["sources"].append(_corpus_row(name, flow["left"], f"{flow['left'][0] - kept:,}"))
    for name, part in curation["corpus"].items():
        sizes = [flow["left"] for flow in part.values()]
        parts["splits"].append(_corpus_row(name, [sum(size[i] for size in sizes) for i in range(2)], ""))
    return parts


def _corpus_row(name: str, size: Sequence[int], dropped: str) -> tuple[str, str, str, str]:
    documents, text_bytes, *_ = size
    return name, f"{documents:,}", f"{text_bytes / 1e6:.1f}", dropped


def dataset_rows(config: Config) -> list[tuple[str, str, str, str]]:
    """(data set, use, documents, tokens) where its sidecar stands."""
    rows = []
    for use, entries in (("training", config.data.train), ("validation", config.data.valid)):
        for entry in entries:
            sidecar = Sidecar.load(entry.prefix)
            if sidecar is not None:
                rows.append((entry.prefix, use, f"{sidecar.documents:,}", f"{sidecar.tokens:,}"))
    return rows


def _points(records: Records, key: str) -> list[tuple[float, float]]:
    """(step, value) where there is one and it is finite."""
    values = ((record["step"], record.get(key)) for record in records)
    return [(step, value) for step, value in values if value is not None and isfinite(value)]


def _smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Means over `window` points around each; towards the ends over as many as lie on both sides."""
    means = []
    for middle, (x, _) in enumerate(points):
        radius = min(middle, len(points) - 1 - middle, window // 2)
        values = [y for _, y in points[middle - radius : middle + radius + 1]]
        means.append((x, sum(values) / len(values)))
    return means


def _short(value: float) -> str:
    """Three digits, as in 1.26M."""
    return format_number(float(f"{value:.3g}"))


def _duration(records: Records) -> str:
    seconds = round(sum(record["seconds"] for record in records))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
