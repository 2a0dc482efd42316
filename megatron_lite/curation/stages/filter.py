"""Documents through the rules of their source, in order, until one drops them."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.engine import Outputs, Task
from megatron_lite.curation.rules.rule import Rule
from megatron_lite.curation.shards import read_shard
from megatron_lite.curation.stages.judging import Judged, write_judged
from megatron_lite.curation.tally import note_size, noted_size

Count = defaultdict[str, float]  # from 0 on


@dataclass(frozen=True)
class SourceRules:
    """The rules of a source, and the files that options of theirs name, such as lists of words, as they are now."""

    rules: tuple[Rule, ...]
    files: tuple[tuple[str, int, int], ...]  # path, bytes, time of change in nanoseconds

    @classmethod
    def of(cls, rules: tuple[Rule, ...]) -> "SourceRules":
        paths = sorted({Path(name) for rule in rules for name in strings_in(asdict(rule)) if is_file(name)})
        return cls(rules, tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@dataclass(frozen=True)
class Filter:
    """A task filters a shard of one source, its argument the SourceRules. Writes `documents` and `dropped`.

    Counts, by rule, documents and bytes seen, documents edited, and seconds.
    """

    version: ClassVar[int] = 1

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        rules = task.argument.rules
        counts: dict[str, Count] = {rule.name: defaultdict(int) for rule in rules}
        documents = read_shard(Path(task.inputs[0].path))
        tally = write_judged(judge(rules, documents, counts), outputs)
        return {"tally": tally, "rules": {name: dict(count) for name, count in counts.items()}}


def judge(rules: Sequence[Rule], documents: Iterable[Document], counts: Mapping[str, Count]) -> Iterator[Judged]:
    """A document that is kept names the rules it has passed, beside what they have noted in its metadata."""
    for document in documents:
        entered, untouched, drop = noted_size(document), document.text, None
        for rule in rules:
            drop = apply(rule, document, counts[rule.name])
            if drop:
                break
        if drop is None:
            document.metadata["passed"] = [rule.name for rule in rules]
            if document.text is not untouched:
                note_size(document)
        yield entered, document, drop


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from strings_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from strings_in(item)


def is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return False


def apply(rule: Rule, document: Document, count: Count) -> Drop | None:
    """The rule's verdict; a document that it leaves without text is dropped too."""
    before, started = document.text, time.perf_counter()
    drop = rule(document)
    count["seconds"] += time.perf_counter() - started
    count["documents"] += 1
    count["bytes"] += document.metadata["bytes"]
    if document.text is not before:
        count["edited"] += 1
        if drop is None and not document.text.strip():
            return Drop(f"{rule.name}.nothing_left", f"of {len(before)} characters")
    return drop
