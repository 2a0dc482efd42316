"""The steps of deduplication (curation/dedup) as stages of the engine, one granularity after another.

Each takes the shards in their order, those of earlier corpora first, and gives the new ones without what occurs
elsewhere. Steps over ranges of hashes take so many ranges as keep one in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_lite.curation.dedup import exact, fuzzy, paragraphs, substring
from megatron_lite.curation.dedup.runs import Range
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.engine import File, Outputs, Row, Stage, Task
from megatron_lite.curation.stages.judging import Judged, write_judged
from megatron_lite.curation.tally import note_size, noted_size

Options = exact.Exact | fuzzy.Fuzzy | paragraphs.Units | substring.Substring

RunStage = Callable[[Stage], list[Row]]
ENDING = ".columns"  # of the files of hashes (dedup/runs.py)

SCANS: Mapping[type[Options], Callable[..., dict[str, int]]] = {
    exact.Exact: exact.scan,
    fuzzy.Fuzzy: fuzzy.scan,
    paragraphs.Units: paragraphs.scan,
    substring.Substring: substring.scan,
}
# Steps over a range of all files of the step before: step(options, files, old, range, path).
RANGED: Mapping[str, Callable[..., dict[str, int]]] = {
    "exact.find": exact.find,
    "fuzzy.pair": fuzzy.pair,
    "fuzzy.choose": fuzzy.choose,
    "paragraphs.find": paragraphs.find,
    "substring.repeat": substring.repeat,
    "substring.find": substring.find,
}


@dataclass(frozen=True)
class Corpus:
    """The shards that a granularity looks at, `old` ones first, and in how many ranges it deals their hashes."""

    shards: tuple[File, ...]
    names: tuple[str, ...]  # of the shards
    old: int
    ranges: int


def deduplicate(name: str, options: Options, corpus: Corpus, run_stage: RunStage) -> list[Row]:
    """Run the steps of a granularity as stages NAME.STEP, the last one NAME; its rows, one for each new shard."""
    steps = _Steps(name, options, corpus, run_stage)
    runs = steps.each_shard("scan", Scan(options), [()] * len(corpus.shards))
    match options:
        case exact.Exact():
            findings = steps.each_range("find", "exact.find", runs)
            return steps.judge(JudgeByRuns(options, runs, findings), [()] * len(runs))
        case fuzzy.Fuzzy():
            edges = steps.each_range("pair", "fuzzy.pair", runs)
            (members,) = steps.files("cluster", Cluster(options, runs, edges), [Task("000000", edges)])
            described = steps.each_shard("describe", Describe(options, members), [(run,) for run in runs])
            findings = steps.each_range("choose", "fuzzy.choose", described)
            return steps.judge(JudgeByRuns(options, runs, findings), [()] * len(runs))
        case paragraphs.Units():
            findings = steps.each_range("find", "paragraphs.find", runs)
            return steps.judge(JudgeUnits(options, findings), [(run,) for run in runs])
        case substring.Substring():
            repeats = steps.each_range("repeat", "substring.repeat", runs)
            keys = steps.each_shard("rescan", Rescan(options, repeats), [()] * len(runs))
            findings = steps.each_range("find", "substring.find", keys)
            return steps.judge(JudgeSubstrings(options, repeats, findings), [(key,) for key in keys])


@dataclass(frozen=True)
class _Steps:
    name: str
    options: Options
    corpus: Corpus
    run_stage: RunStage

    def files(self, step: str, work: Any, tasks: Sequence[Task]) -> tuple[File, ...]:
        rows = self.run_stage(Stage(f"{self.name}.{step}", work, tasks))
        return tuple(row.outputs[step][0] for row in rows)

    def each_shard(self, step: str, work: Any, more: Sequence[tuple[File, ...]]) -> tuple[File, ...]:
        return self.files(step, work, self._shard_tasks(more))

    def each_range(self, step: str, function: str, files: tuple[File, ...]) -> tuple[File, ...]:
        old, ranges = self.corpus.old, self.corpus.ranges
        weight = sum(file.bytes for file in files) // ranges
        tasks = [Task(f"{number:06}", (), number, weight) for number in range(ranges)]
        return self.files(step, Ranged(step, function, self.options, files, old, ranges), tasks)

    def judge(self, work: Any, more: Sequence[tuple[File, ...]]) -> list[Row]:
        return self.run_stage(Stage(self.name, work, self._shard_tasks(more)[self.corpus.old :]))

    def _shard_tasks(self, more: Sequence[tuple[File, ...]]) -> list[Task]:
        named = zip(self.corpus.names, self.corpus.shards, more, strict=True)
        return [Task(name, (shard, *files), number) for number, (name, shard, files) in enumerate(named)]


@dataclass(frozen=True)
class Scan:
    version: ClassVar[int] = 1

    options: Options

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        return SCANS[type(self.options)](self.options, path_of(task.inputs[0]), outputs.path("scan", ENDING))


@dataclass(frozen=True)
class Ranged:
    version: ClassVar[int] = 1

    step: str
    function: str  # of RANGED
    options: Options
    files: tuple[File, ...]
    old: int
    ranges: int

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        part, path = Range(task.argument, self.ranges), outputs.path(self.step, ENDING)
        return RANGED[self.function](self.options, paths_of(self.files), self.old, part, path)


@dataclass(frozen=True)
class Cluster:
    version: ClassVar[int] = 1

    options: fuzzy.Fuzzy
    runs: tuple[File, ...]
    edges: tuple[File, ...]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        path = outputs.path("cluster", ENDING)
        return fuzzy.cluster(self.options, paths_of(self.runs), paths_of(self.edges), path)


@dataclass(frozen=True)
class Describe:
    version: ClassVar[int] = 1

    options: fuzzy.Fuzzy
    members: File

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        shard, run = paths_of(task.inputs)
        path = outputs.path("describe", ENDING)
        return fuzzy.describe(self.options, shard, task.argument, run, path_of(self.members), path)


@dataclass(frozen=True)
class Rescan:
    version: ClassVar[int] = 1

    options: substring.Substring
    repeats: tuple[File, ...]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        (shard,) = paths_of(task.inputs)
        path = outputs.path("rescan", ENDING)
        return substring.rescan(self.options, shard, task.argument, paths_of(self.repeats), path)


@dataclass(frozen=True)
class JudgeByRuns:
    version: ClassVar[int] = 1

    options: exact.Exact | fuzzy.Fuzzy
    runs: tuple[File, ...]
    findings: tuple[File, ...]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        (shard,) = paths_of(task.inputs)
        files = shard, task.argument, paths_of(self.runs), paths_of(self.findings)
        if isinstance(self.options, exact.Exact):
            judged = exact.judge(self.options, *files)
        else:
            judged = fuzzy.judge(self.options, *files)
        return {"tally": write_judged(sized(judged), outputs)}


@dataclass(frozen=True)
class JudgeUnits:
    version: ClassVar[int] = 1

    options: paragraphs.Units
    findings: tuple[File, ...]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        shard, run = paths_of(task.inputs)
        removed: Counter[str] = Counter()
        judged = paragraphs.judge(self.options, shard, task.argument, run, paths_of(self.findings), removed)
        return {"tally": write_judged(sized(judged), outputs), "removed": dict(removed)}


@dataclass(frozen=True)
class JudgeSubstrings:
    version: ClassVar[int] = 1

    options: substring.Substring
    repeats: tuple[File, ...]
    findings: tuple[File, ...]

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        shard, keys = paths_of(task.inputs)
        repeats, findings = paths_of(self.repeats), paths_of(self.findings)
        removed: Counter[str] = Counter()
        judged = substring.judge(self.options, shard, task.argument, repeats, keys, findings, removed)
        return {"tally": write_judged(sized(judged), outputs), "removed": dict(removed)}


def sized(judged: Iterable[tuple[Document, Drop | None]]) -> Iterator[Judged]:
    """With the size noted before the judge; noted again where it has cut text out, which makes it smaller."""
    for document, drop in judged:
        entered = noted_size(document)
        if drop is None and len(document.text.encode()) != entered.bytes:
            note_size(document)
        yield entered, document, drop


def path_of(file: File) -> Path:
    return Path(file.path)


def paths_of(files: Iterable[File]) -> list[Path]:
    return [Path(file.path) for file in files]
