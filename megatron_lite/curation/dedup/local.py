"""Each granularity's steps in their order, in this process: what tests and measurements run, and how to read the rest.

The pipeline runs the same steps as stages of an engine. `shards` are those of the old corpus, `old` of them, and the
new ones behind them; what comes back is, for each new shard, its documents and why they are dropped.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_lite.curation.dedup import exact, fuzzy, paragraphs, substring
from megatron_lite.curation.dedup.runs import Range
from megatron_lite.curation.documents import Document, Drop

Judged = list[tuple[Document, Drop | None]]


@dataclass
class Steps:
    """A folder to work in, and what each step took (seconds of CPU), wrote (bytes) and counted."""

    folder: Path
    ranges: int = 1
    seconds: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    counts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def parts(self) -> list[Range]:
        return [Range(number, self.ranges) for number in range(self.ranges)]

    def each(self, name: str, items: Sequence[Any], step: Callable[[Any, Path], dict[str, Any]]) -> list[Path]:
        """The files that step(item, path) wrote for the items."""
        paths = [self.folder / f"{name}-{number:05d}" for number in range(len(items))]
        self.counts[name] = []
        for item, path in zip(items, paths, strict=True):
            started = time.process_time()
            self.counts[name].append(step(item, path))
            self.seconds[name] += time.process_time() - started
            self.written[name] += path.stat().st_size
        return paths

    def judged(self, documents: Iterator[tuple[Document, Drop | None]]) -> Judged:
        started = time.process_time()
        result = list(documents)
        self.seconds["judge"] += time.process_time() - started
        return result


def deduplicate_exact(steps: Steps, options: exact.Exact, shards: Sequence[Path], old: int = 0) -> list[Judged]:
    runs = steps.each("scan", shards, lambda shard, path: exact.scan(options, shard, path))
    findings = steps.each("find", steps.parts, lambda part, path: exact.find(options, runs, old, part, path))
    return [steps.judged(exact.judge(options, shards[n], n, runs, findings)) for n in range(old, len(shards))]


def deduplicate_fuzzy(steps: Steps, options: fuzzy.Fuzzy, shards: Sequence[Path], old: int = 0) -> list[Judged]:
    runs = steps.each("scan", shards, lambda shard, path: fuzzy.scan(options, shard, path))
    edges = steps.each("pair", steps.parts, lambda part, path: fuzzy.pair(options, runs, old, part, path))
    (members,) = steps.each("cluster", [edges], lambda all_edges, path: fuzzy.cluster(options, runs, all_edges, path))
    descriptions = steps.each(
        "describe",
        range(len(shards)),
        lambda n, path: fuzzy.describe(options, shards[n], n, runs[n], members, path),
    )
    findings = steps.each(
        "choose", steps.parts, lambda part, path: fuzzy.choose(options, descriptions, old, part, path)
    )
    return [steps.judged(fuzzy.judge(options, shards[n], n, runs, findings)) for n in range(old, len(shards))]


def deduplicate_units(
    steps: Steps, options: paragraphs.Units, shards: Sequence[Path], old: int = 0, counts: Counter[str] | None = None
) -> list[Judged]:
    """What is removed is added to `counts`."""
    counts = Counter() if counts is None else counts
    runs = steps.each("scan", shards, lambda shard, path: paragraphs.scan(options, shard, path))
    findings = steps.each("find", steps.parts, lambda part, path: paragraphs.find(options, runs, old, part, path))
    return [
        steps.judged(paragraphs.judge(options, shards[n], n, runs[n], findings, counts))
        for n in range(old, len(shards))
    ]


def deduplicate_substrings(
    steps: Steps, options: substring.Substring, shards: Sequence[Path], old: int = 0, counts: Counter[str] | None = None
) -> list[Judged]:
    """What is removed is added to `counts`."""
    counts = Counter() if counts is None else counts
    runs = steps.each("scan", shards, lambda shard, path: substring.scan(options, shard, path))
    repeats = steps.each("repeat", steps.parts, lambda part, path: substring.repeat(options, runs, old, part, path))
    keys = steps.each(
        "rescan", range(len(shards)), lambda n, path: substring.rescan(options, shards[n], n, repeats, path)
    )
    findings = steps.each("find", steps.parts, lambda part, path: substring.find(options, keys, old, part, path))
    return [
        steps.judged(substring.judge(options, shards[n], n, repeats, keys[n], findings, counts))
        for n in range(old, len(shards))
    ]
