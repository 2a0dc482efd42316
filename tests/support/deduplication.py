"""Shards of texts for the tests of deduplication, and what independent code makes of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.engine import File, Row, run_stage
from megatron_lite.curation.engine.stage import file_checksum
from megatron_lite.curation.shards import ShardWriter, read_records, read_shard
from megatron_lite.curation.stages.deduplicate import Corpus, Options
from megatron_lite.curation.stages.deduplicate import deduplicate as run_steps
from megatron_lite.curation.tally import note_size

Judged = list[tuple[Document, Drop | None]]


def write_shards(folder: Path, shards: Sequence[Sequence[str]], urls: Sequence[Sequence[str | None]] | None = None):
    """Shard files of these texts. The document in row r of shard s has the id "test/s/r"."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for s, texts in enumerate(shards):
        paths.append(folder / f"{s:05d}.jsonl.zst")
        with ShardWriter(paths[-1]) as writer:
            for r, text in enumerate(texts):
                document = Document(f"test/{s}/{r}", text, "test", url=urls[s][r] if urls else None)
                note_size(document)
                writer.write(document)
    return paths


class InProcess:
    """An engine that does one task after another, here."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, item in enumerate(items):
            yield index, function(item)

    def close(self) -> None: ...


def run_stages(
    folder: Path, options: Options, paths: Sequence[Path], old=0, ranges=3, gone: Sequence[Path] = ()
) -> dict[str, list[Row]]:
    """A granularity's stages over shards of which the first `old` ones are an old corpus's; the rows of each, by step,
    the last one's by "judge". Shards that are `gone` are removed once they have been scanned.
    """
    rows = {}

    def run(stage):
        step = stage.name.partition(".")[2] or "judge"
        rows[step] = run_stage(stage, folder / "stages", InProcess())
        for path in gone if step == "scan" else ():
            path.unlink()
        return rows[step]

    files = tuple(File(str(path), path.stat().st_size, file_checksum(path)) for path in paths)
    run_steps("dedup", options, Corpus(files, tuple(f"{n:05}" for n in range(len(paths))), old, ranges), run)
    return rows


def deduplicate(
    folder: Path, options: Options, shards, old=0, ranges=3, *, urls=None, gone=0, counts: Counter[str] | None = None
) -> Judged:
    """Every new document as it stays, or as it was and why it is dropped. What is removed is added to `counts`.

    The first `gone` shards are removed once they have been scanned.
    """
    paths = write_shards(folder / "shards", shards, urls)
    rows = run_stages(folder, options, paths, old, ranges, paths[:gone])["judge"]
    judged = []
    for path, row in zip(paths[old:], rows, strict=True):
        kept, out = row.outputs["documents"][0].path, row.outputs["dropped"][0].path
        stays = {document.id: document for document in read_shard(kept)}
        drops = {record["id"]: Drop(record["rule"], record["detail"]) for record in read_records(out)}
        assert not stays.keys() & drops.keys()
        judged += [
            (document, drops[document.id]) if document.id in drops else (stays[document.id], None)
            for document in read_shard(path)
        ]
        if counts is not None:
            counts.update(row.counts["removed"])
    return judged


def dropped(judged: Judged) -> dict[str, str]:
    """Why, by id."""
    return {document.id: drop.detail for document, drop in judged if drop}


def components(size: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The least member of each number's component: labels sink along the pairs until none does."""
    label = list(range(size))
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            least = min(label[a], label[b])
            changed |= label[a] != label[b]
            label[a] = label[b] = least
    return label


def suffix_array(tokens: np.ndarray) -> np.ndarray:
    """Where the suffixes of a sequence of numbers start, in their order (prefix doubling, Manber and Myers 1993)."""
    rank = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    length = 1
    while True:
        ahead = np.full(len(rank), -1, np.int64)
        ahead[:-length] = rank[length:]
        order = np.lexsort((ahead, rank))
        differs = (np.diff(rank[order]) != 0) | (np.diff(ahead[order]) != 0)
        rank = np.empty_like(rank)
        rank[order] = np.concatenate([[0], np.cumsum(differs)])
        if differs.all() or length >= len(rank):
            return order
        length *= 2


def common_prefixes(tokens: np.ndarray, suffixes: np.ndarray) -> np.ndarray:
    """[i]: how many numbers the suffixes i - 1 and i, in order, have in common at their start (Kasai et al. 2001)."""
    size = len(tokens)
    rank = np.empty(size, np.int64)
    rank[suffixes] = np.arange(size)
    lcp, common = np.zeros(size, np.int64), 0
    values, places, ranks = tokens.tolist(), suffixes.tolist(), rank.tolist()
    for i in range(size):
        if ranks[i] == 0:
            common = 0
            continue
        j = places[ranks[i] - 1]
        while max(i, j) + common < size and values[i + common] == values[j + common]:
            common += 1
        lcp[ranks[i]] = common
        common = max(common - 1, 0)
    return lcp


def plain_suffixes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    suffixes = suffix_array(tokens)
    return suffixes, common_prefixes(tokens, suffixes)


def repeated_words(
    documents: Sequence[Sequence[str]],
    window: int,
    suffixes_of: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = plain_suffixes,
) -> list[np.ndarray]:
    """Which tokens of each document lie in a window that an earlier one, clear of it, equals: by a suffix array.

    `suffixes_of` gives the sorted suffixes of a sequence and how much each has in common with the one before it.
    """
    # Behind each document stands a number of its own, so no window that is found twice goes over an end.
    numbers: dict[str, int] = {}
    sequence = []
    for number, document in enumerate(documents):
        sequence += [len(documents) + numbers.setdefault(token, len(numbers)) for token in document]
        sequence.append(number)
    tokens = np.array(sequence, np.uint32)
    suffixes, common = suffixes_of(tokens)
    group = np.cumsum(common < window)  # suffixes that begin with one window stand together
    first = np.full(group[-1] + 1, len(tokens), np.int64)
    np.minimum.at(first, group, suffixes)
    first_of = np.empty(len(tokens), np.int64)
    first_of[suffixes] = first[group]
    lengths = [len(document) + 1 for document in documents]
    document_of = np.repeat(np.arange(len(documents)), lengths)
    place = np.arange(len(tokens))
    clear = (document_of[first_of] != document_of) | (first_of + window <= place)
    starts = place[(first_of != place) & clear]
    marks = np.zeros(len(tokens) + window + 1, np.int64)
    np.add.at(marks, starts, 1)
    np.add.at(marks, starts + window, -1)
    covered = np.cumsum(marks)[: len(tokens)] > 0
    ends = np.cumsum(lengths)
    return [covered[end - length : end - 1] for end, length in zip(ends, lengths, strict=True)]
