"""report.html: a run on one page that opens without a network.

It is drawn from what the run directory holds: config.yaml, layout.json and metrics.jsonl, and where they are there
samples.jsonl, rows.json, unigram.json, sample.txt, the report of curation in curation/, and the sidecars of data sets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from megatron_lite.config import AlignedConfig, Config, LoraConfig, ModelConfig, Resolved, load_config
from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish
from megatron_lite.model.model import schedule_of
from megatron_lite.page import render
from megatron_lite.parallel.pipeline.drawing import timeline_svg
from megatron_lite.parallel.pipeline.simulator import Costs, simulate
from megatron_lite.training.charts import format_number
from megatron_lite.training.curves import benchmark_charts, loss_chart, objective_charts, set_charts, step_charts
from megatron_lite.training.flops import flops_per_token, matmul_parameters
from megatron_lite.training.mesh_drawing import MAX_PANELS, describe, mesh_svg
from megatron_lite.training.metrics import read_metrics
from megatron_lite.training.report_tables import corpus_tables, data_table, sample_texts, validation_table
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
        "loss": loss_chart(run.records, loss_unit(run.config), run.unigram),
        "counted": counted(run.config),
        "objective": objective_charts(run.records),
        "by_set": set_charts(run.records),
        "validation": validation_table(run.records),
        "samples": sample_texts(run.directory),
        "benchmarks": benchmark_charts(run.records),
        "steps": step_charts(run.records),
        "timeline": pipeline_timeline(run.config, run.layout),
        "mesh": mesh(run.config, run.layout),
        "corpus": corpus_tables(run.corpus) if run.corpus else None,
        "datasets": data_table(run.config, run.directory),
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
        *algorithm_of(run.config),
        f"{_short(parameter_count(model))} parameters",
        *([] if run.config.lora is None else [adapters(run.config.lora)]),
        describe(run.layout),
        f"ZeRO-{parallel.zero_stage}",
        f"{parallel.schedule}, {run.layout.microbatches} microbatches" if run.layout.pipeline > 1 else "no pipeline",
        train.dtype,
        f"{train.global_batch_size} sequences × {train.sequence_length:,} tokens a step",
    ]


def algorithm_of(config: Config) -> list[str]:
    """What was done after pretraining, and how, where it was."""
    if not isinstance(config, AlignedConfig):
        return []
    if config.dpo is not None:
        dpo = config.dpo
        further = {"label smoothing": dpo.label_smoothing, "NLL weight": dpo.nll_weight}
        settings = [f"{dpo.loss} loss", f"beta {dpo.beta:g}", *(f"{name} {x:g}" for name, x in further.items() if x)]
        settings += ["means a token"] if dpo.length_normalized else []
        return [f"DPO ({', '.join(settings)})"]
    if config.reward is not None:
        criterion = "" if config.reward.criterion is None else f", criterion {config.reward.criterion}"
        return [f"reward model (Bradley-Terry{criterion})"]
    return ["supervised fine-tuning"]


def adapters(lora: LoraConfig) -> str:
    return f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"


def loss_unit(config: Config) -> str:
    if isinstance(config, AlignedConfig):
        return "mean of pairs" if config.compares else "nats a trained token"
    return "nats a token"


def counted(config: Config) -> str:
    """What the loss is a mean over."""
    if isinstance(config, AlignedConfig):
        return "pairs of a global batch" if config.compares else "trained tokens of a global batch, in nats"
    return "counted tokens of a global batch, in nats"


def key_figures(run: RecordedRun) -> list[tuple[str, str, str]]:
    """(value, name, remark) of the numbers one looks for first."""
    last, validated = run.records[-1], [record for record in run.records if "valid_loss" in record]
    figures = []
    if validated:
        unseen = "nats a token, on unseen documents"
        if isinstance(run.config, AlignedConfig):
            unseen = f"{loss_unit(run.config)}, on {'unseen pairs' if run.config.compares else 'unseen dialogues'}"
        figures.append((f"{validated[-1]['valid_loss']:.3f}", "validation loss", unseen))
        if "valid_accuracy" in validated[-1]:
            figures.append((f"{validated[-1]['valid_accuracy']:.1%}", "accuracy", "of unseen pairs"))
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
    config = run.config
    flops = flops_per_token(config.model, config.train.sequence_length, config.lora)
    cost = f"{_short(rate * flops)} model FLOP/s"
    figures.append((_short(rate), "tokens a second", f"median of the steps; {cost}"))
    if last["mfu"] is not None:
        figures.append((f"{median(record['mfu'] for record in run.records):.1%}", "MFU", "median of the steps"))
    waited = sum(record.get("data_seconds", 0.0) for record in run.records)
    share = waited / sum(record["seconds"] for record in run.records)
    figures.append((f"{share:.2%}", "waiting for data", "of the steps' time, on the first rank"))
    kind = last["memory_kind"].replace("_", " ")
    figures.append((f"{last['memory_bytes'] / 2**30:.2f} GiB", "memory", f"{kind}, fullest rank"))
    return figures


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


def _short(value: float) -> str:
    """Three digits, as in 1.26M."""
    return format_number(float(f"{value:.3g}"))


def _duration(records: Records) -> str:
    seconds = round(sum(record["seconds"] for record in records))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
