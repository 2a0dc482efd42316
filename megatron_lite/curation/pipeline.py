"""The stages of curation in their order, from a configuration's sources to shards for training and validation.

    ingest                      inputs -> documents; what cannot be read is set aside by name
    filter                      each source's rules
    url, text                   documents of one URL, of one text
    fuzzy                       near duplicates
    paragraphs, lines           that occur again
    substring                   passages that occur again
    corpus                      training and validation

Each goes from shards to shards and can be left out. A folder looks so when it is done:

    config.yaml                 the resolved configuration
    inputs.jsonl                each input file with the number that its documents' ids carry
    stages/NAME/documents/      what a stage has kept, shard by shard
    stages/NAME/dropped/        what it has dropped: id, source, URL, rule, detail and an excerpt; of ingest: refused/
    stages/NAME/manifest.jsonl  a row a shard; stages/NAME.STEP/ holds what a step of deduplication hands to the next
    corpus/train/, corpus/valid/
    report.json, report.html    written last: where they stand the corpus is whole
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from megatron_lite.config.load import dump
from megatron_lite.curation.config import CurationConfig, DedupConfig, rules_of
from megatron_lite.curation.dedup import exact
from megatron_lite.curation.engine import Engine, File, Row, Stage, Task, in_place, run_stage
from megatron_lite.curation.engine.manifest import NAME as MANIFEST
from megatron_lite.curation.engine.manifest import read_rows
from megatron_lite.curation.readers import InputFile, cut, deal, list_files
from megatron_lite.curation.shards import ENDING
from megatron_lite.curation.stages.deduplicate import Corpus, Options, deduplicate
from megatron_lite.curation.stages.filter import Filter, SourceRules
from megatron_lite.curation.stages.ingest import Ingest
from megatron_lite.curation.stages.split import Split
from megatron_lite.errors import UsageError
from megatron_lite.files import partial_path, publish

CORPUS = "corpus"
REPORTS = ("report.json", "report.html")


@dataclass(frozen=True)
class Shard:
    """A shard of documents of one source; `name` is its file's from ingest on."""

    name: str
    source: str
    file: File


@dataclass
class Curation:
    """A run under way: where it writes, who works, what stands of an earlier run, and the rows of finished stages."""

    config: CurationConfig
    output: Path
    engine: Engine
    stands: Callable[[Row], bool]
    finished: dict[str, list[Row]] = field(default_factory=dict)

    def run(self, stage: Stage) -> list[Row]:
        parent = self.output if stage.name == CORPUS else self.output / "stages"
        self.finished[stage.name] = run_stage(stage, parent, self.engine, self.stands)
        return self.finished[stage.name]


def curate(config: CurationConfig, engine: Engine, stands: Callable[[Row], bool] = in_place) -> Curation:
    """Run what is not done of all stages. Raises UsageError, DataError, and MegatronLiteError for a lost worker."""
    output = Path(config.output)
    files = {name: list_files(name, source) for name, source in config.sources.items()}
    if not any(files.values()):
        raise UsageError("sources: none of them has a file")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        for name in REPORTS:
            (output / name).unlink(missing_ok=True)
        write_file(output / "config.yaml", dump(config).encode())
        write_inputs(output / "inputs.jsonl", files)
        run = Curation(config, output, engine, stands)
        shards = ingest(run, files)
        shards = filter_shards(run, shards)
        for name, options, content in granularities(config.dedup):
            shards = deduplicate_shards(run, shards, name, options, content)
        run.run(Stage(CORPUS, Split(config.split.valid_fraction, config.split.seed), tasks_of(shards)))
        remove_others(output / "stages", set(run.finished))
    return run


def ingest(run: Curation, files: dict[str, list[InputFile]]) -> list[Shard]:
    tasks = []
    for name, source in run.config.sources.items():
        slices = cut(files[name], source.kind, run.config.shard_bytes)
        parts = deal(slices, run.config.shard_bytes)
        tasks += [Task(f"{name}-{number:06}", part, source.format) for number, part in enumerate(parts)]
    rows = run.run(Stage("ingest", Ingest(run.config.reading, run.config.shard_bytes), tasks))
    return [
        Shard(Path(file.path).name.removesuffix(ENDING), task.inputs[0].file.source, file)
        for task, row in zip(tasks, rows, strict=True)
        for file in row.outputs["documents"]
    ]


def filter_shards(run: Curation, shards: list[Shard]) -> list[Shard]:
    """Shards of sources without rules pass by."""
    rules = {name: SourceRules.of(rules_of(run.config, name)) for name in run.config.sources}
    chosen = [shard for shard in shards if rules[shard.source].rules]
    tasks = [Task(shard.name, (shard.file,), rules[shard.source]) for shard in chosen]
    return replaced(shards, chosen, run.run(Stage("filter", Filter(), tasks)) if tasks else [])


def granularities(config: DedupConfig) -> Iterator[tuple[str, Options, tuple[str, ...]]]:
    """(stage's name, options, content that it looks at) of the steps that are switched on, in their order."""
    everything = ("prose", "code")
    if config.url:
        yield "url", exact.Exact("url"), everything
    if config.text:
        yield "text", exact.Exact(config.text), everything
    if config.fuzzy:
        yield "fuzzy", config.fuzzy.make(), config.fuzzy.content
    if config.paragraphs:
        yield "paragraphs", config.paragraphs.make("paragraph"), config.paragraphs.content
    if config.lines:
        yield "lines", config.lines.make("line"), config.lines.content
    if config.substring:
        yield "substring", config.substring.make(), config.substring.content


def deduplicate_shards(
    run: Curation, shards: list[Shard], name: str, options: Options, content: tuple[str, ...]
) -> list[Shard]:
    """Shards of sources of other content pass by."""
    chosen = [shard for shard in shards if run.config.sources[shard.source].content in content]
    if not chosen:
        return shards
    old = previous_shards(run.config.dedup.previous)
    files = (*old, *(shard.file for shard in chosen))
    names = (*(f"previous-{number:06}" for number in range(len(old))), *(shard.name for shard in chosen))
    # The text in a shard is some four times its bytes on the disk; what matters is that the files alone decide.
    ranges = max(1, -(-4 * sum(file.bytes for file in files) // run.config.dedup.range_bytes))
    return replaced(shards, chosen, deduplicate(name, options, Corpus(files, names, len(old), ranges), run.run))


def previous_shards(folders: tuple[str, ...]) -> list[File]:
    """The shards of earlier corpora. Raises UsageError for a folder where no curation has finished."""
    shards = []
    for folder in folders:
        if not (Path(folder) / "report.json").exists():
            raise UsageError(f"dedup.previous = {folder}: no report.json is there; name the output of a whole curation")
        rows = read_rows(Path(folder) / CORPUS).values()
        ordered = sorted(rows, key=lambda row: row.task)
        shards += [file for part in ("train", "valid") for row in ordered for file in row.outputs[part]]
    return shards


def replaced(shards: list[Shard], chosen: list[Shard], rows: list[Row]) -> list[Shard]:
    """The shards, with those that a stage has worked on as it has left them."""
    made = {
        shard.name: Shard(shard.name, shard.source, row.outputs["documents"][0])
        for shard, row in zip(chosen, rows, strict=True)
    }
    return [made.get(shard.name, shard) for shard in shards]


def remove_others(folder: Path, names: set[str]) -> None:
    """Remove stages of an earlier configuration: what a folder holds is a function of its configuration."""
    for path in folder.iterdir():
        if path.name not in names and (path / MANIFEST).exists():
            shutil.rmtree(path)


def tasks_of(shards: list[Shard]) -> list[Task]:
    return [Task(shard.name, (shard.file,)) for shard in shards]


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Raises UsageError where another run is at work in the folder. A killed run holds no lock."""
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"output = {output}: another run is at work there") from None
        yield


def write_inputs(path: Path, files: dict[str, list[InputFile]]) -> None:
    lines = []
    for file in (file for source_files in files.values() for file in source_files):
        record = {"source": file.source, "number": file.number, "path": file.path, "bytes": file.bytes}
        lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    write_file(path, b"".join(lines))


def write_file(path: Path, content: bytes) -> None:
    partial_path(path).write_bytes(content)
    publish(path)
