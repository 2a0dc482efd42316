"""The report's tables: validation by set, what became of the data, and what the model wrote as it learned."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lite.config import AlignedConfig, Config
from megatron_lite.data.sidecar import Sidecar
from megatron_lite.training.metrics import read_metrics
from megatron_lite.training.samples import SAMPLES

Records = Sequence[Mapping[str, Any]]
ROWS = "rows.json"  # in the directory of a run after pretraining
STEPS = 6  # of which sample texts are shown
# Beside the loss; a number that validation does not have is left out.
COLUMNS = {"accuracy": "accuracy", "margin": "margin", "bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class Table:
    """`numeric` says which columns are numbers."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]


def validation_table(records: Records) -> Table | None:
    """Each validation set's first loss and its last, and what else is known of the last; None where there are not
    several.
    """
    loss = "valid_loss/"
    validated = [record for record in records if any(key.startswith(loss) for key in record)]
    names = [key.removeprefix(loss) for key in (validated[-1] if validated else ()) if key.startswith(loss)]
    if len(names) < 2:
        return None
    first, last = validated[0], validated[-1]
    kinds = [kind for kind in COLUMNS if any(f"valid_{kind}/{name}" in last for name in names)]
    rows = [
        [name, f"{first[loss + name]:.3f}", f"{last[loss + name]:.3f}", *(_number(last, kind, name) for kind in kinds)]
        for name in names
    ]
    titles = ["validation set", "first loss", "last loss", *(COLUMNS[kind] for kind in kinds)]
    return Table(titles, rows, [False, *[True] * (len(titles) - 1)])


def _number(record: Mapping[str, Any], kind: str, name: str) -> str:
    value = record.get(f"valid_{kind}/{name}")
    return "" if value is None else f"{value:.3f}"


def corpus_tables(curation: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str, str]]]:
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


def data_table(config: Config, run_dir: Path) -> Table | None:
    """What is known of the data sets; None where nothing is."""
    return _rows_table(run_dir / ROWS) if isinstance(config, AlignedConfig) else _tokens_table(config)


def _tokens_table(config: Config) -> Table | None:
    rows = []
    for use, entries in (("training", config.data.train), ("validation", config.data.valid)):
        for entry in entries:
            sidecar = Sidecar.load(entry.prefix)
            if sidecar is not None:
                rows.append((entry.prefix, use, f"{sidecar.documents:,}", f"{sidecar.tokens:,}"))
    return Table(["data set", "use", "documents", "tokens"], rows, [False, False, True, True]) if rows else None


def _rows_table(path: Path) -> Table | None:
    """Of each file of rows: what was made of it, what was left out and why, and how its samples lie in rows."""
    if not path.exists():
        return None
    sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
    names = [
        "set",
        "use",
        "rows in file",
        "samples",
        "tokens",
        "trained",
        "left out or cut",
        "rows of an epoch",
        "padding",
    ]
    rows = [
        [
            one["name"], one["use"], *(f"{one[key]:,}" for key in ("rows", "samples", "tokens", "trained_tokens")),
            left_out(one), f"{one['packed_rows']:,}", "" if one["waste"] is None else f"{one['waste']:.1%}",
        ]
        for one in sets
    ]  # fmt: skip
    return Table(names, rows, [False, False, True, True, True, True, False, True, True])


def left_out(one: Mapping[str, Any]) -> str:
    """In words, or "none"."""
    counted = [(count, reason) for reason, count in one["bad"].items()]
    counted += [(one["dropped"], "too long"), (one["cut"], "cut"), (one.get("others", 0), "of another criterion")]
    return ", ".join(f"{reason} ({count:,})" for count, reason in counted if count) or "none"


@dataclass(frozen=True)
class Texts:
    """What followed a prompt: (step, text, whether it went on) of some of `steps` steps."""

    prompt: str
    answers: Sequence[tuple[int, str, bool]]
    steps: int


def sample_texts(run_dir: Path) -> list[Texts]:
    """Of each prompt that was asked, in order; of many steps the first, the last, and some between."""
    asked: dict[str, dict[int, tuple[int, str, bool]]] = {}
    for line in read_metrics(run_dir / SAMPLES):
        cut = line["finish_reason"] == "length"
        asked.setdefault(line["prompt"], {})[line["step"]] = line["step"], visible(line["text"]), cut
    return [Texts(visible(prompt), spread(list(found.values()), STEPS), len(found)) for prompt, found in asked.items()]


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def visible(text: str) -> str:
    """Control characters, which a page does not show, as pictures of them."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 0x20 and c not in "\n\t" else c for c in text)
