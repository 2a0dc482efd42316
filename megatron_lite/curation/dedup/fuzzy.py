"""Near duplicates: MinHash signatures, locality-sensitive hashing, clusters.

    scan      shard -> run                    14 band hashes a document, each once a shard; lengths and ids
    pair      range of hashes -> edges        between documents that share a band hash
    cluster   edges -> members                union-find; 8 bytes of memory for each document of the corpus
    describe  shard, members -> description   the shard's documents of clusters; for `verify` their shingles
    choose    range of clusters -> findings   (verify pairs,) who stays and who goes
    judge     shard, findings -> its documents, and why they are dropped

Two documents whose sets of shingles (5 consecutive words of the splitter, in lower case) have Jaccard similarity s
share one of 14 bands of 8 minima with probability 1 - (1 - s^8)^14 (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, 3.4.2), one half at s = 0.69: FineWeb's choice (arXiv 2406.17557, 3.4). A document of fewer than 5 words is
one shingle, near only to those of the same words; one without words is near to none.

Clusters are connected components, so a document may go for one that it resembles only by way of others; `verify` joins
only pairs whose exact similarity reaches a threshold. `keep` says which document of a cluster stays: "first", the
default, because its verdict on a document never hangs on lengths, which cleaning changes, and a longer document is
often the same one with boilerplate around it; "longest" where more text counts for more. Its metadata's `cluster_size`
says for how many it stands: FineWeb 2 (huggingface/fineweb-2) repeats documents by it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup.clusters import Keep, choose_kept
from megatron_lite.curation.dedup.runs import (
    Columns,
    Range,
    gather,
    ids_of_rows,
    pack_ids,
    read_columns,
    read_findings,
    write_columns,
    write_findings,
)
from megatron_lite.curation.dedup.texts import read_batches
from megatron_lite.curation.documents import Document, Drop

SPREAD = np.uint64(0x9E3779B97F4A7C15)  # times a cluster's root: a bijection that spreads roots over all ranges


@dataclass(frozen=True)
class Fuzzy:
    keep: Keep = "first"
    verify: float | None = None  # the Jaccard similarity that a pair must reach; None: sharing a band is enough
    seed: int = 1  # of the permutations

    @property
    def scan_settings(self) -> dict:
        """What band hashes depend on: runs made with equal ones can be joined."""
        return {"step": "fuzzy", "seed": self.seed}

    @property
    def settings(self) -> dict:
        return {**self.scan_settings, "keep": self.keep, "verify": self.verify}


def scan(options: Fuzzy, shard: Path, run: Path) -> dict[str, int]:
    ids, lengths, hashes, rows = [], [], [np.empty((0, _dedup.BANDS), np.uint64)], [np.empty(0, np.int64)]
    for begin, documents in read_batches(shard):
        ids += [document.id for document in documents]
        lengths += [len(document.text) for document in documents]
        bands, has_words = _dedup.band_hashes([document.text for document in documents], options.seed)
        hashes.append(bands[has_words])
        rows.append(begin + np.flatnonzero(has_words))
    key = np.concatenate(hashes).reshape(-1)
    row = np.repeat(np.concatenate(rows), _dedup.BANDS).astype(np.uint32)
    first = _dedup.first_of_each(key, key)
    is_first = first == np.arange(len(first))
    # What repeats in the shard is joined here; one of it stands for the others elsewhere.
    again = np.unique(np.stack([row[~is_first], row[first[~is_first]]], axis=1), axis=0)
    key, row = key[is_first], row[is_first]
    order = np.argsort(key)
    columns = {"key": key[order], "row": row[order], "length": np.array(lengths, np.uint64), **pack_ids(ids)}
    columns |= {"edge_row": again[:, 0], "edge_first": again[:, 1]}
    write_columns(run, columns, options.scan_settings)
    return {"documents": len(ids), "keys": len(key), "edges": len(again)}


def pair(options: Fuzzy, runs: Sequence[Path], old: int, part: Range, edges: Path) -> dict[str, int]:
    """The first `old` runs are those of the old corpus. Each document is joined to the first one with its band hash."""
    found = gather(runs, ("key", "row"), part, options.scan_settings)
    first = _dedup.first_of_each(found.columns["key"], found.columns["key"])
    again = found.again(first, old)
    columns = {
        "shard": found.shard[again],
        "row": found.columns["row"][again],
        "first_shard": found.shard[first[again]],
        "first_row": found.columns["row"][first[again]],
    }
    write_columns(edges, columns, options.scan_settings)
    return {"keys": len(first), "edges": len(again)}


def cluster(options: Fuzzy, runs: Sequence[Path], edges: Sequence[Path], members: Path) -> dict[str, int]:
    """All documents that are in a cluster with another one, and the first of it, their root."""
    settings = options.scan_settings
    sizes = [len(read_columns(run, settings)["length"]) for run in runs]
    # A document's number in the corpus is its shard's begin plus its row.
    begins = np.cumsum([0, *sizes]).astype(np.uint64)
    clusters = _dedup.Clusters(int(begins[-1]))
    for begin, run in zip(begins, runs, strict=False):
        columns = read_columns(run, settings)
        clusters.join(begin + columns["edge_row"], begin + columns["edge_first"])
    for path in edges:
        columns = read_columns(path, settings)
        clusters.join(begins[columns["shard"]] + columns["row"], begins[columns["first_shard"]] + columns["first_row"])
    number, root = clusters.members()
    shard = np.searchsorted(begins, number, side="right") - 1
    columns = {
        "shard": shard.astype(np.uint32),
        "row": (number - begins[shard]).astype(np.uint32),
        "root": root,
    }
    write_columns(members, columns, settings)
    return {"documents": int(begins[-1]), "members": len(number)}


def describe(options: Fuzzy, shard: Path, number: int, run: Path, members: Path, description: Path) -> dict[str, int]:
    """`number` is the shard's in the order of runs. The shard itself is read for `verify` only."""
    columns = read_findings([members], ("row", "root"), number, options.scan_settings)
    columns["length"] = read_columns(run, options.scan_settings)["length"][columns["row"]]
    columns["key"] = columns["root"] * SPREAD
    order = np.argsort(columns["key"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    if options.verify is not None:
        columns |= _shingles(options, shard, columns["row"])
    write_columns(description, columns, options.settings)
    return {"members": len(order)}


def _shingles(options: Fuzzy, shard: Path, rows: np.ndarray) -> Columns:
    """Band hashes and shingles of these documents."""
    texts: dict[int, str] = {}
    wanted = set(rows.tolist())
    for begin, documents in read_batches(shard):
        texts |= {row: document.text for row, document in enumerate(documents, begin) if row in wanted}
    ordered = [texts[row] for row in rows.tolist()]
    sets = [_dedup.shingles(text) for text in ordered]
    return {
        "bands": _dedup.band_hashes(ordered, options.seed)[0],
        "starts": np.cumsum([0, *map(len, sets)], dtype=np.int64),
        "shingles": np.concatenate([np.empty(0, np.uint64), *sets]),
    }


def choose(options: Fuzzy, descriptions: Sequence[Path], old: int, part: Range, findings: Path) -> dict:
    """The first `old` descriptions are those of the old corpus. Counts clusters by their size."""
    found = gather(descriptions, ("key", "root", "row", "length"), part, options.settings)
    members = {**found.columns, "shard": found.shard}
    if options.verify is not None:
        members["root"] = _verified_roots(options, options.verify, descriptions, part)
    order = np.lexsort((members["row"], members["shard"]))
    verdicts, sizes = choose_kept({name: column[order] for name, column in members.items()}, options.keep, old)
    write_findings(findings, verdicts, options.settings)
    return {"found": int((~_stays(verdicts)).sum()), "cluster_sizes": sizes}


def _stays(verdicts: Columns) -> np.ndarray:
    return (verdicts["kept_shard"] == verdicts["shard"]) & (verdicts["kept_row"] == verdicts["row"])


def _verified_roots(options: Fuzzy, least: float, descriptions: Sequence[Path], part: Range) -> np.ndarray:
    """Clusters of a range by exact similarity of at least so much. A pair to compare shares a band hash, so it shares a
    cluster already.
    """
    bands, sizes, shingles = [], [], []
    for path in descriptions:
        columns = read_columns(path, options.settings)
        rows = part.rows(columns["key"])
        starts = columns["starts"][rows.start : rows.stop + 1]
        bands.append(columns["bands"][rows])
        sizes.append(np.diff(starts))
        shingles.append(columns["shingles"][starts[0] : starts[-1]])
    starts = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
    return _dedup.verified_roots(np.concatenate(bands), starts, np.concatenate(shingles), least)


def judge(
    options: Fuzzy, shard: Path, number: int, runs: Sequence[Path], findings: Sequence[Path]
) -> Iterator[tuple[Document, Drop | None]]:
    """The documents of the shard whose run is runs[number]; one that stays for others learns its cluster's size."""
    found = read_findings(findings, ("shard", "row", "kept_shard", "kept_row", "size"), number, options.settings)
    stays = _stays(found)
    ids = ids_of_rows(runs, found["kept_shard"][~stays], found["kept_row"][~stays], options.scan_settings)
    kept = dict(zip(found["row"][~stays].tolist(), ids, strict=True))
    sizes = dict(zip(found["row"][stays].tolist(), found["size"][stays].tolist(), strict=True))
    for begin, documents in read_batches(shard):
        for row, document in enumerate(documents, begin):
            if row in sizes:
                document.metadata["cluster_size"] = sizes[row]
            yield document, Drop("fuzzy.minhash", f"near to {kept[row]}") if row in kept else None
