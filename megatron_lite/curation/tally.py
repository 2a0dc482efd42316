"""What became of the documents of a shard: how many, of how many bytes and words, from which source, and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from megatron_lite.curation._text import count_words
from megatron_lite.curation.documents import Document


class Size(NamedTuple):
    documents: int = 0
    bytes: int = 0  # of UTF-8
    words: int = 0  # the splitter's (words.py), symbols left out

    def __add__(self, other: "Size") -> "Size":  # type: ignore[override]  # sizes add up, tuples join
        return Size(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "Size") -> "Size":
        return Size(*(a - b for a, b in zip(self, other, strict=True)))


NOTHING = Size()


def note_size(document: Document) -> None:
    """Note a document's bytes and words in its metadata; a stage that edits it notes them again."""
    document.metadata["bytes"] = len(document.text.encode())
    document.metadata["words"] = count_words(document.text)


def noted_size(document: Document) -> Size:
    return Size(1, document.metadata["bytes"], document.metadata["words"])


@dataclass
class Flow:
    """What became of one source's documents. What entered and neither left nor was dropped, edits have removed."""

    entered: Size = NOTHING
    left: Size = NOTHING
    dropped: dict[str, Size] = field(default_factory=dict)  # by rule
    lengths: Counter[int] = field(default_factory=Counter)  # of what left: documents of 2^(n-1) to 2^n - 1 words, by n
    languages: Counter[str] = field(default_factory=Counter)  # of what left: documents

    @property
    def edited(self) -> Size:
        return self.entered - self.left - sum(self.dropped.values(), NOTHING)

    def drop(self, rule: str, size: Size) -> None:
        self.dropped[rule] = self.dropped.get(rule, NOTHING) + size

    def leave(self, document: Document) -> None:
        size = noted_size(document)
        self.left += size
        self.lengths[size.words.bit_length()] += 1
        self.languages[document.language or "unknown"] += 1

    def add(self, other: "Flow") -> None:
        self.entered += other.entered
        self.left += other.left
        for rule, size in other.dropped.items():
            self.drop(rule, size)
        self.lengths.update(other.lengths)
        self.languages.update(other.languages)


class Tally(dict[str, Flow]):
    """Flows by source."""

    def __missing__(self, source: str) -> Flow:
        self[source] = Flow()
        return self[source]

    def add(self, other: "Tally") -> None:
        for source, flow in other.items():
            self[source].add(flow)

    def total(self) -> Flow:
        total = Flow()
        for flow in self.values():
            total.add(flow)
        return total

    def as_json(self) -> dict[str, Any]:
        """With sorted keys, for a row of a manifest."""
        return {source: _flow_as_json(self[source]) for source in sorted(self)}


def tally_of(records: Iterable[Mapping[str, Any]]) -> Tally:
    """The sum of what `as_json` gave."""
    total = Tally()
    for record in records:
        for source, flow in record.items():
            total[source].add(
                Flow(
                    Size(*flow["entered"]),
                    Size(*flow["left"]),
                    {rule: Size(*size) for rule, size in flow["dropped"].items()},
                    Counter({int(length): count for length, count in flow["lengths"].items()}),
                    Counter(flow["languages"]),
                )
            )
    return total


def _flow_as_json(flow: Flow) -> dict[str, Any]:
    return {
        "entered": list(flow.entered),
        "left": list(flow.left),
        "dropped": {rule: list(flow.dropped[rule]) for rule in sorted(flow.dropped)},
        "lengths": {str(length): flow.lengths[length] for length in sorted(flow.lengths)},
        "languages": {language: flow.languages[language] for language in sorted(flow.languages)},
    }
