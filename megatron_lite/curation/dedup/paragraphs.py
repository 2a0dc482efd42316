"""Paragraphs and lines that occur again: the first occurrence stays.

    scan    shard -> run                the key of each paragraph or line, once a shard, with its number of occurrences
    find    range of keys -> findings   keys that occur often enough, and whether an earlier shard has the first
    judge   shard, findings -> its documents without what is repeated; one left without words is dropped

A paragraph is a run of lines that are not blank. Short ones ("Yes.", "}") say the same without being copies: those of
fewer than `minimum_words` words are never touched. `minimum_count` is how often one must occur in the whole corpus
before its copies go: 2 for paragraphs; lines repeat by nature, and Llama 3 (arXiv 2407.21783, 3.1.1) takes those that
occur more than 6 times for boilerplate.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup.runs import (
    Range,
    differs_from_previous,
    gather,
    order_by_key,
    read_columns,
    read_findings,
    write_columns,
    write_findings,
)
from megatron_lite.curation.dedup.texts import read_batches
from megatron_lite.curation.documents import Document, Drop


@dataclass(frozen=True)
class Units:
    """What is compared, and from when on it counts as repeated."""

    unit: Literal["paragraph", "line"]
    minimum_count: int
    minimum_words: int = 3
    # "words": the words alone, in lower case, so that spacing, case and punctuation make no difference; "exact": all
    # but the white space at the end.
    comparison: Literal["words", "exact"] = "words"

    @property
    def scan_settings(self) -> dict:
        """What keys depend on: runs made with equal ones can be joined."""
        return {"step": self.unit, "comparison": self.comparison, "minimum_words": self.minimum_words}

    @property
    def settings(self) -> dict:
        return {"step": self.unit, **asdict(self)}


PARAGRAPHS = Units("paragraph", minimum_count=2)
LINES = Units("line", minimum_count=7)


def scan(options: Units, shard: Path, run: Path) -> dict[str, int]:
    highs: list[np.ndarray] = []
    lows: list[np.ndarray] = []
    documents = occurrences = 0
    for _, batch in read_batches(shard):
        batch_high, batch_low, _, _ = _units(options, batch)
        highs.append(batch_high)
        lows.append(batch_low)
        documents, occurrences = documents + len(batch), occurrences + len(batch_high)
    high, low = (np.concatenate(half or [np.empty(0, np.uint64)]) for half in (highs, lows))
    order = order_by_key(high, low)
    high, low = high[order], low[order]
    first = np.flatnonzero(differs_from_previous(high, low))
    count = np.diff(first, append=len(high)).astype(np.uint32)
    columns = {"high": high[first], "low": low[first], "count": count}
    write_columns(run, columns, options.scan_settings)
    return {"documents": documents, f"{options.unit}s": occurrences, "keys": len(first)}


def find(options: Units, runs: Sequence[Path], old: int, part: Range, findings: Path) -> dict[str, int]:
    """The first `old` runs are those of the old corpus."""
    found = gather(runs, ("high", "low", "count"), part, options.scan_settings)
    first = _dedup.first_of_each(found.columns["high"], found.columns["low"])
    count = found.columns["count"]
    total = np.bincount(first, weights=count, minlength=len(first))[first]
    has_more = (first != np.arange(len(first))) | (count > 1)
    repeated = np.flatnonzero(has_more & (total >= options.minimum_count) & (found.shard >= old))
    columns = {
        "shard": found.shard[repeated],
        "place": found.place[repeated],
        "first_is_here": (first[repeated] == repeated).astype(np.uint8),
    }
    write_findings(findings, columns, options.settings)
    return {"keys": len(first), "found": len(repeated)}


def judge(
    options: Units, shard: Path, number: int, run: Path, findings: Sequence[Path], counts: Counter[str]
) -> Iterator[tuple[Document, Drop | None]]:
    """The documents of the shard that is `number` in the order of runs. What is removed is added to `counts`."""
    keys = read_columns(run, options.scan_settings)
    found = read_findings(findings, ("place", "first_is_here"), number, options.settings)
    table = _dedup.KeyTable(keys["high"][found["place"]], keys["low"][found["place"]])
    # Of each repeated key: whether an occurrence that comes now is one too many.
    spent = found["first_is_here"] == 0
    for _, documents in read_batches(shard):
        high, low, document_of, unit_of = _units(options, documents)
        place = table.find(high, low)
        repeated = np.flatnonzero(place >= 0)
        fresh = repeated[~spent[place[repeated]]]
        first = np.empty(len(spent), np.int64)
        first[place[fresh[::-1]]] = fresh[::-1]  # each key's first occurrence is written last, and stays
        stays = np.zeros(len(place), bool)
        stays[first[place[fresh]]] = True
        spent[place[fresh]] = True
        gone = repeated[~stays[repeated]]
        begins = np.searchsorted(document_of[gone], np.arange(len(documents) + 1, dtype=np.uint32))
        for i, document in enumerate(documents):
            yield _without(options, document, unit_of[gone[begins[i] : begins[i + 1]]], counts)


def _without(
    options: Units, document: Document, units: np.ndarray, counts: Counter[str]
) -> tuple[Document, Drop | None]:
    if not len(units):
        return document, None
    text = _dedup.without_units(document.text, options.unit, units)
    counts[f"{options.unit}s_removed"] += len(units)
    counts["characters_removed"] += len(document.text) - len(text)
    if not text.strip():
        return document, Drop(f"{options.unit}s.empty", f"all {len(units)} {options.unit}s occur earlier")
    document.text = text
    return document, None


def _units(options: Units, documents: Sequence[Document]) -> tuple[np.ndarray, ...]:
    texts = [document.text for document in documents]
    return _dedup.units(texts, options.unit, options.comparison, options.minimum_words)
