"""Documents of one URL, or of one text: the first stays.

    scan    shard -> run           the key of each document, once a shard, and the documents' ids
    find    range of keys -> findings   the rows whose key stands in an earlier shard, and where
    judge   shard, findings -> its documents, and why they are dropped

A key is 128 bits of xxh3: of 1e11 documents two different ones share a key with a chance of 1e-17.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup.runs import (
    Range,
    gather,
    id_of_row,
    ids_of_rows,
    order_by_key,
    pack_ids,
    read_columns,
    read_findings,
    write_columns,
    write_findings,
)
from megatron_lite.curation.dedup.texts import read_batches
from megatron_lite.curation.dedup.urls import normalize_url
from megatron_lite.curation.documents import Document, Drop


@dataclass(frozen=True)
class Exact:
    """What makes two documents equal: their URL (see urls.py), their text, or the text's words in lower case."""

    by: Literal["url", "text", "words"]

    @property
    def settings(self) -> dict:
        return {"step": "exact", **asdict(self)}


def scan(options: Exact, shard: Path, run: Path) -> dict[str, int]:
    ids, keys, rows = [], [], []
    for begin, documents in read_batches(shard):
        ids += [document.id for document in documents]
        having, high, low = _keys(options, documents)
        rows.append(begin + having)
        keys.append((high, low))
    high, low = (np.concatenate([part[i] for part in keys] or [np.empty(0, np.uint64)]) for i in (0, 1))
    first = _dedup.first_of_each(high, low) == np.arange(len(high))
    row = np.concatenate(rows or [np.empty(0, np.int64)])[first].astype(np.uint32)
    high, low = high[first], low[first]
    order = order_by_key(high, low)
    columns = {"high": high[order], "low": low[order], "row": row[order], **pack_ids(ids)}
    write_columns(run, columns, options.settings)
    return {"documents": len(ids), "keys": len(high)}


def find(options: Exact, runs: Sequence[Path], old: int, part: Range, findings: Path) -> dict[str, int]:
    """The first `old` runs are those of the old corpus."""
    found = gather(runs, ("high", "low", "row"), part, options.settings)
    first = _dedup.first_of_each(found.columns["high"], found.columns["low"])
    again = found.again(first, old)
    columns = {
        "shard": found.shard[again],
        "row": found.columns["row"][again],
        "kept_shard": found.shard[first[again]],
        "kept_row": found.columns["row"][first[again]],
    }
    write_findings(findings, columns, options.settings)
    return {"keys": len(first), "found": len(again)}


def judge(
    options: Exact, shard: Path, number: int, runs: Sequence[Path], findings: Sequence[Path]
) -> Iterator[tuple[Document, Drop | None]]:
    """The documents of the shard whose run is runs[number]."""
    run = read_columns(runs[number], options.settings)
    found = read_findings(findings, ("row", "kept_shard", "kept_row"), number, options.settings)
    ids = ids_of_rows(runs, found["kept_shard"], found["kept_row"], options.settings)
    kept_elsewhere = dict(zip(found["row"].tolist(), ids, strict=True))
    table = _dedup.KeyTable(np.array(run["high"]), np.array(run["low"]))
    first_rows = np.array(run["row"])
    for begin, documents in read_batches(shard):
        having, high, low = _keys(options, documents)
        first_of = dict(zip((begin + having).tolist(), first_rows[table.find(high, low)].tolist(), strict=True))
        for row, document in enumerate(documents, begin):
            first = first_of.get(row, row)
            kept = kept_elsewhere.get(first) or (id_of_row(run, first) if first != row else None)
            yield document, Drop(f"exact.{options.by}", f"same {options.by} as {kept}") if kept else None


def _keys(options: Exact, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the documents that have a key, and the keys' two halves."""
    numbers = np.arange(len(documents))
    texts = [document.text for document in documents]
    if options.by == "words":
        high, low, _, _ = _dedup.units(texts, "document", "words", 0)
        return numbers, high, low
    if options.by == "url":
        urls = [(i, document.url) for i, document in enumerate(documents) if document.url]
        numbers = np.array([i for i, _ in urls], np.int64)
        texts = [normalize_url(url) for _, url in urls]
    digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    halves = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
    return numbers, np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
