"""Passages of 50 words and more that occur again: the first occurrence stays.

A word here is a token of the splitter, symbols included. A word goes if it lies in a window of 50 consecutive words
of its document whose words equal those of an earlier window: one of an earlier shard, of an earlier row of the shard,
or of the same document if the two do not overlap. So a document that says one word 200 times keeps the first 50 of
them, and whatever is removed stands somewhere in what is kept. Words are compared byte for byte, the white space
between them not at all. Documents are cut between words (csrc/windows.h); one left without words is dropped.

Windows are as many as words, so few of them travel. Equal windows have equal anchors, their runs of 25 words of least
hash (minimizers, Roberts et al. 2004), and an anchor stands for 13 windows on average:

    scan     shard -> run                      hashes of its anchors
    repeat   range of hashes -> repeats        anchors that stand in two places, by shard
    rescan   shard, repeats -> keys            128-bit keys of the windows with such anchors, each once
    find     range of keys -> findings         keys that an earlier shard has too
    judge    shard, repeats, findings -> its documents without what is repeated

Against an old corpus the old shards are read again where anchors of theirs occur in new ones, as their windows' keys
would take more space than their text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
class Substring:
    window: int = 50  # words: Lee et al. (arXiv 2107.06499) and RefinedWeb (arXiv 2306.01116) take 50 subword tokens
    anchor: int = 25  # words; affects speed alone

    @property
    def settings(self) -> dict:
        return {"step": "substring", **asdict(self)}


def scan(options: Substring, shard: Path, run: Path) -> dict[str, int]:
    """An anchor that stands in several places of the shard is written twice, others once."""
    hashes, documents = [np.empty(0, np.uint64)], 0
    for _, batch in read_batches(shard):
        hashes.append(_dedup.anchors([document.text for document in batch], options.window, options.anchor))
        documents += len(batch)
    distinct, count = np.unique(np.concatenate(hashes), return_counts=True)
    anchors = np.repeat(distinct, np.minimum(count, 2))
    write_columns(run, {"anchor": anchors}, options.settings)
    return {"documents": documents, "anchors": int(count.sum())}


def repeat(options: Substring, runs: Sequence[Path], old: int, part: Range, repeats: Path) -> dict[str, int]:
    """The first `old` runs are those of the old corpus: what repeats among them alone is left out."""
    found = gather(runs, ("anchor",), part, options.settings)
    anchor = found.columns["anchor"]
    first = _dedup.first_of_each(anchor, anchor)
    places = np.bincount(first, minlength=len(first))
    new_places = np.bincount(first[found.shard >= old], minlength=len(first))
    repeated = differs_from_previous(anchor, found.shard) & (places[first] > 1) & (new_places[first] > 0)
    write_findings(repeats, {"shard": found.shard[repeated], "anchor": anchor[repeated]}, options.settings)
    return {"anchors": len(anchor), "repeated": int(repeated.sum())}


def rescan(options: Substring, shard: Path, number: int, repeats: Sequence[Path], keys: Path) -> dict[str, int]:
    """`number` is the shard's in the order of runs."""
    wanted = _wanted(options, number, repeats)
    highs, lows, windows = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], 0
    # A shard without such anchors has no such windows.
    for _, batch in read_batches(shard) if len(wanted) else ():
        batch_high, batch_low, _, _ = _windows(options, batch, wanted)
        highs.append(batch_high)
        lows.append(batch_low)
        windows += len(batch_high)
    high, low = np.concatenate(highs), np.concatenate(lows)
    order = order_by_key(high, low)
    high, low = high[order], low[order]
    first = differs_from_previous(high, low)
    write_columns(keys, {"high": high[first], "low": low[first]}, options.settings)
    return {"windows": windows, "keys": int(first.sum())}


def find(options: Substring, keys: Sequence[Path], old: int, part: Range, findings: Path) -> dict[str, int]:
    found = gather(keys, ("high", "low"), part, options.settings)
    first = _dedup.first_of_each(found.columns["high"], found.columns["low"])
    again = found.again(first, old)
    write_findings(findings, {"shard": found.shard[again], "place": found.place[again]}, options.settings)
    return {"keys": len(first), "found": len(again)}


def judge(
    options: Substring,
    shard: Path,
    number: int,
    repeats: Sequence[Path],
    keys: Path,
    findings: Sequence[Path],
    counts: Counter[str],
) -> Iterator[tuple[Document, Drop | None]]:
    """The documents of the shard that is `number` in the order of runs. What is removed is added to `counts`."""
    wanted = _wanted(options, number, repeats)
    columns = read_columns(keys, options.settings)
    firsts = _Firsts(columns["high"], columns["low"])
    firsts.are_elsewhere(read_findings(findings, ("place",), number, options.settings)["place"])
    for begin, documents in read_batches(shard):
        if not len(wanted):
            yield from ((document, None) for document in documents)
            continue
        high, low, document_of, token_of = _windows(options, documents, wanted)
        gone = firsts.stand_before(high, low, begin + document_of.astype(np.int64), token_of, options.window)
        document_of, token_of = document_of[gone], token_of[gone]
        begins = np.searchsorted(document_of, np.arange(len(documents) + 1, dtype=np.uint32))
        for i, document in enumerate(documents):
            yield _cut(options, document, token_of[begins[i] : begins[i + 1]], counts)


class _Firsts:
    """Where each of a shard's windows stands for the first time, learned as they pass in order."""

    def __init__(self, high: np.ndarray, low: np.ndarray):
        self._table = _dedup.KeyTable(np.array(high), np.array(low))
        self._row = np.full(len(high), -1, np.int64)  # -1: not seen yet
        self._token = np.zeros(len(high), np.int64)

    def are_elsewhere(self, places: np.ndarray) -> None:
        """The first of these keys is in another shard, so before every row and far from every window of this one."""
        self._row[places] = -2

    def stand_before(
        self, high: np.ndarray, low: np.ndarray, row: np.ndarray, token: np.ndarray, window: int
    ) -> np.ndarray:
        """Which of these windows, in order of (row, token), are repetitions of one that stands clear before them."""
        place = self._table.find(high, low)
        unseen = np.flatnonzero(self._row[place] == -1)[::-1]  # a key's first window is written last, and stays
        self._row[place[unseen]], self._token[place[unseen]] = row[unseen], token[unseen]
        return (self._row[place] != row) | (self._token[place] + window <= token)


def _cut(
    options: Substring, document: Document, windows: np.ndarray, counts: Counter[str]
) -> tuple[Document, Drop | None]:
    if not len(windows):
        return document, None
    text, words = _dedup.cut(document.text, options.window, windows)
    counts["words_removed"] += words
    counts["characters_removed"] += len(document.text) - len(text)
    if not text:
        return document, Drop("substring.empty", f"all {words} words occur earlier")
    document.text = text
    return document, None


def _wanted(options: Substring, number: int, repeats: Sequence[Path]) -> np.ndarray:
    return read_findings(repeats, ("anchor",), number, options.settings)["anchor"]


def _windows(options: Substring, documents: Sequence[Document], wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    texts = [document.text for document in documents]
    return _dedup.windows(texts, options.window, options.anchor, wanted)
