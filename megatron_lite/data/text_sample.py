"""Which text a tokenizer learns from, and which it is measured on: a seeded sample of any corpus, in bounded memory."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from megatron_lite.data.jsonl import MalformedLine, total_bytes
from megatron_lite.data.pieces import cut_inputs
from megatron_lite.errors import DataError, UsageError
from megatron_lite.progress import Progress

CHUNK_CHARACTERS = 2048  # text is sampled and learned from in pieces of this size, so no document outweighs the rest
HELD_OUT = 50  # one document of so many is not learned from
HELD_OUT_CHARACTERS = 1 << 16  # of it, at most, that are measured
MOST_SOURCES = 256


@dataclass(frozen=True)
class Sampling:
    """A uniform sample of the chunks of all documents, `sample_bytes` at most; with `weights` of each source's.

    A weight is the source's share of the sample: one that has less text gives all it has, and the sample is smaller.
    The source of a document is its string under `source_key`, else the name of its file up to the first period.
    """

    json_key: str = "text"
    source_key: str = "source"
    language_key: str = "language"
    sample_bytes: int = 100_000_000
    held_out_bytes: int = 1_000_000  # of each source
    seed: int = 1234
    weights: Mapping[str, float] = field(default_factory=dict)
    skip_malformed: bool = False


@dataclass(frozen=True)
class HeldOut:
    source: str
    language: str  # "" where the document does not say
    text: str


@dataclass(frozen=True)
class TextSample:
    chunks: list[str]  # to learn from, in the order of the corpus
    held_out: list[HeldOut]
    seen: Counter  # bytes of text, by source
    learned: Counter  # of these in `chunks`
    malformed: int


class Reservoir:
    """Keeps what drew the smallest numbers, as much as fits in `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._kept: list[tuple[int, int, str, bytes]] = []  # (-draw, place, label, text): the top is the next to go

    def add(self, draw: int, place: int, label: str, text: bytes) -> None:
        if self.bytes + len(text) > self.limit and self._kept and -self._kept[0][0] < draw:
            return  # it would be the first to go
        heapq.heappush(self._kept, (-draw, place, label, text))
        self.bytes += len(text)
        while self.bytes > self.limit:
            self.bytes -= len(heapq.heappop(self._kept)[3])

    def items(self) -> Iterator[tuple[int, str, bytes]]:
        """(place, label, text)"""
        return ((place, label, text) for _, place, label, text in self._kept)


def sample_text(inputs: Sequence[str], sampling: Sampling) -> TextSample:
    """One pass over the corpus. Every chunk, and every document, draws a number from (seed, its place).

    Raises UsageError for a source without a weight where others have one, for a weight of no source, and for more than
    MOST_SOURCES sources; DataError for a malformed record that may not be skipped.
    """
    sampler, malformed = Sampler(sampling), 0
    numbers: Counter[int] = Counter()
    keys, optional = (sampling.json_key,), (sampling.source_key, sampling.language_key)
    with Progress("sample text", total_bytes(inputs)) as progress:
        for piece in cut_inputs(inputs, keys, optional=optional):
            path = inputs[piece.file]
            for record in piece.records(keys, optional):
                numbers[piece.file] += 1
                if not isinstance(record, MalformedLine):
                    text, source, language = record
                    sampler.add(text, source or Path(path).name.split(".")[0], language)
                elif sampling.skip_malformed:
                    malformed += 1
                else:
                    raise DataError(f"{path}:{numbers[piece.file]}: {record}")
            progress.advance(piece.position)
    return sampler.sample(malformed)


class Sampler:
    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        total = sum(sampling.weights.values())
        shares = {source: int(sampling.sample_bytes * weight / total) for source, weight in sampling.weights.items()}
        # By source; without weights, one for all.
        self._learned = {group: Reservoir(limit) for group, limit in (shares or {"": sampling.sample_bytes}).items()}
        self._held_out: dict[str, Reservoir] = {}
        self._seen: Counter = Counter()
        self._documents = self._chunks = 0

    def add(self, text: str, source: str, language: str) -> None:
        self._seen[source] += len(text.encode())
        self._check(source)
        draw = _draw(self._documents, self.sampling.seed + 1)
        self._documents += 1
        if draw % HELD_OUT == 0:
            reservoir = self._held_out.setdefault(source, Reservoir(self.sampling.held_out_bytes))
            reservoir.add(draw, self._documents, language, text[:HELD_OUT_CHARACTERS].encode())
            return
        reservoir = self._learned[source if self.sampling.weights else ""]
        for chunk in cut(text, CHUNK_CHARACTERS):
            draw = _draw(self._chunks, self.sampling.seed)
            reservoir.add(draw, self._chunks, source, chunk.encode())
            self._chunks += 1

    def sample(self, malformed: int) -> TextSample:
        if absent := sorted(set(self.sampling.weights) - set(self._seen)):
            seen = ", ".join(sorted(self._seen))
            raise UsageError(f"--weights: no document is of source {absent[0]!r}; there are {seen}")
        chunks = sorted(item for reservoir in self._learned.values() for item in reservoir.items())
        held_out = sorted(
            (place, source, language, text)
            for source, reservoir in self._held_out.items()
            for place, language, text in reservoir.items()
        )
        learned: Counter = Counter()
        for _, source, text in chunks:
            learned[source] += len(text)
        return TextSample(
            [text.decode() for _, _, text in chunks],
            [HeldOut(source, language, text.decode()) for _, source, language, text in held_out],
            self._seen,
            learned,
            malformed,
        )

    def _check(self, source: str) -> None:
        weights = self.sampling.weights
        if weights and source not in weights:
            raise UsageError(f"--weights: source {source!r} has no weight; {', '.join(weights)} have")
        if len(self._seen) > MOST_SOURCES:
            raise UsageError(
                f"more than {MOST_SOURCES} sources by key {self.sampling.source_key!r}; choose another --source-key"
            )


def _draw(place: int, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(place.to_bytes(8, "little"), seed)


def cut(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of at most `size` characters, cut after a newline where one stands in the second half."""
    begin = 0
    while begin < len(text):
        end = begin + size
        newline = text.rfind("\n", begin + size // 2, end) + 1
        if newline and end < len(text):
            end = newline
        yield text[begin:end]
        begin = end
