"""What became of everything: report.json, and report.html, which opens without a network.

Both are drawn from the stages' manifests alone, and for what there is to look at from the first shards of what was
dropped. Sizes are [documents, bytes of UTF-8, words of the splitter].
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megatron_lite.curation.engine import Row
from megatron_lite.curation.pipeline import CORPUS, Curation, write_file
from megatron_lite.curation.readers import REASONS
from megatron_lite.curation.report_page import page_of
from megatron_lite.curation.shards import read_records
from megatron_lite.curation.tally import Flow, Tally, tally_of
from megatron_lite.data.sidecar import Sidecar
from megatron_lite.page import render

EXAMPLES = 3  # of each reason

Json = dict[str, Any]


def write_report(curation: Curation) -> Path:
    """Write report.json and report.html into the output folder; returns the path of the page."""
    report = summarize(curation)
    page = render("curation/report.html", page_of(report))
    write_file(curation.output / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    write_file(curation.output / "report.html", page.encode())
    return curation.output / "report.html"


def summarize(curation: Curation) -> Json:
    names = [name for name in curation.finished if "." not in name and name != CORPUS]
    stages = [stage_of(curation, name) for name in names]
    corpus = {part: tally_of(row.counts[part] for row in curation.finished[CORPUS]) for part in ("train", "valid")}
    config = curation.config
    return {
        "name": curation.output.resolve().name,
        "engine": config.engine,
        "workers": config.workers,
        "content": {name: source.content for name, source in config.sources.items()},
        "stages": stages,
        "corpus": {part: tally.as_json() for part, tally in corpus.items()},
        "throughput": [throughput_of(curation, name) for name in curation.finished],
        "tokens": tokens_of(config.report.datasets),
        "training_report": link_to(config.report.training, curation.output),
        "config": (curation.output / "config.yaml").read_text(encoding="utf-8"),
    }


def stage_of(curation: Curation, name: str) -> Json:
    """What a stage did, by source and by reason, and what there is to say of it alone."""
    rows = curation.finished[name]
    tally = tally_of(row.counts["tally"] for row in rows)
    more: Json = {}
    match name:
        case "ingest":
            more["mended"] = dict(sum_counts(row.counts["mended"] for row in rows))
        case "filter":
            more["rules"] = rules_of_rows(rows)
        case "fuzzy":
            chosen = curation.finished["fuzzy.choose"]
            more["cluster_sizes"] = dict(sum_counts(row.counts["cluster_sizes"] for row in chosen))
        case "paragraphs" | "lines" | "substring":
            more["removed"] = dict(sum_counts(row.counts["removed"] for row in rows))
    reasons = sorted(tally.total().dropped)
    kind = "refused" if name == "ingest" else "dropped"
    return {
        "name": name,
        "tasks": len(rows),
        "sources": {source: flow_as_json(flow) for source, flow in sorted(tally.items())},
        "total": flow_as_json(tally.total()),
        "reasons": {reason: REASONS.get(reason, "") for reason in reasons},
        "examples": {reason: examples_of(reason, rows, kind) for reason in reasons},
        **more,
    }


def flow_as_json(flow: Flow) -> Json:
    return {**Tally(one=flow).as_json()["one"], "edited": list(flow.edited)}


def examples_of(reason: str, rows: Sequence[Row], kind: str) -> list[Json]:
    """The first records with this reason; only shards that have some are opened."""
    having = (row for row in rows if any(reason in flow["dropped"] for flow in row.counts["tally"].values()))
    return list(islice(_records(reason, having, kind), EXAMPLES))


def _records(reason: str, rows: Iterator[Row], kind: str) -> Iterator[Json]:
    for row in rows:
        for file in row.outputs[kind]:
            for record in read_records(file.path):
                if reason in (record.get("rule"), record.get("reason")):
                    yield record


def rules_of_rows(rows: Sequence[Row]) -> Json:
    """Documents, bytes, edits and seconds of each rule."""
    total: dict[str, Counter] = {}
    for row in rows:
        for rule, count in row.counts["rules"].items():
            total.setdefault(rule, Counter()).update(count)
    return {rule: dict(count) for rule, count in total.items()}


def throughput_of(curation: Curation, name: str) -> Json:
    """Bytes of text and of files that a stage has read, and the workers' seconds, with and without waiting."""
    rows = curation.finished[name]
    return {
        "stage": name,
        "tasks": len(rows),
        "text_bytes": sum(text_bytes(row) for row in curation.finished[name.split(".")[0]]),
        "input_bytes": sum(row.input_bytes for row in rows),
        "output_bytes": sum(file.bytes for row in rows for made in row.outputs.values() for file in made),
        "seconds": sum(row.seconds for row in rows),
        "cpu_seconds": sum(row.cpu_seconds for row in rows),
    }


def text_bytes(row: Row) -> int:
    """Bytes of the documents that entered: those of a stage's steps too."""
    tallies = [row.counts[key] for key in ("tally", "train", "valid") if key in row.counts]
    return sum(flow["entered"][1] for tally in tallies for flow in tally.values())


def tokens_of(datasets: Sequence[str]) -> dict[str, int]:
    """Tokens of the data sets that have been binarized by now."""
    sidecars = {prefix: Sidecar.load(prefix) for prefix in datasets}
    return {prefix: sidecar.tokens for prefix, sidecar in sidecars.items() if sidecar}


def link_to(page: str | None, folder: Path) -> str | None:
    """The page's path as seen from the folder, once it is there."""
    if page is None or not Path(page).exists():
        return None
    return Path(os.path.relpath(page, folder)).as_posix()


def sum_counts(counts: Iterator[Json]) -> Counter:
    total: Counter = Counter()
    for count in counts:
        total.update(count)
    return total


def summary_lines(curation: Curation) -> Iterator[str]:
    """The stages in lines of text."""
    yield f"{'stage':<12}{'documents':>12}{'MB':>10}{'dropped':>10}{'kept':>12}{'MB':>10}"
    for name in (name for name in curation.finished if "." not in name and name != CORPUS):
        flow = tally_of(row.counts["tally"] for row in curation.finished[name]).total()
        dropped = flow.entered.documents - flow.left.documents
        remains = f"{flow.left.documents:>12,}{flow.left.bytes / 1e6:>10.1f}"
        yield f"{name:<12}{flow.entered.documents:>12,}{flow.entered.bytes / 1e6:>10.1f}{dropped:>10,}{remains}"
    for part in ("train", "valid"):
        left = tally_of(row.counts[part] for row in curation.finished[CORPUS]).total().left
        yield f"{part:<12}{'':>32}{left.documents:>12,}{left.bytes / 1e6:>10.1f}"
