"""From a file of rows to a store, once: rendered, masked and tokenized by workers, found again by content."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_lite.alignment.dialogues import read_criterion, read_dialogue, read_pair
from megatron_lite.alignment.masks import Masks
from megatron_lite.alignment.rows import BadRow, Row, Rows, parsed, place_of, read_rows
from megatron_lite.alignment.store import Segment, read_about
from megatron_lite.alignment.store_writer import StoreWriter
from megatron_lite.data.cache import alone
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError
from megatron_lite.progress import Progress
from megatron_lite.workers import map_in_order, worker_pool

VERSION = 1  # raised where the same rows become other tokens
NAMED = 10  # rows that are left out, each in a line; of the others the number is told
BLOCK = 1 << 20  # bytes hashed at once
ALONE = 3  # parts of a file from which on others help

log = logging.getLogger("megatron_lite")


@dataclass(frozen=True)
class Rendering:
    """What decides what rows become. `tokenizer` is a path that `open_tokenizer` takes, `template` a chat template's
    text (None: rows of plain text alone); `longest` tokens a sample has at most, both segments of a pair together; of
    rows with a `criterion` those of this one are taken (None: all).
    """

    kind: Literal["dialogue", "pair"]
    tokenizer: str
    template: str | None
    longest: int
    system_prompt: str | None = None
    overlong: Literal["drop", "cut"] = "drop"
    bad_rows: Literal["stop", "skip"] = "stop"
    criterion: str | None = None

    @property
    def columns(self) -> list[str]:
        return ["row"] if self.kind == "dialogue" else ["row", "margin"]


@dataclass(frozen=True)
class Prepared:
    """What became of a file's rows. `bad` counts those left out by reason, `dropped` those that were too long (or had
    no trained token left once cut), `cut` those that lost their ends, `others` those of another criterion.
    """

    prefix: Path
    rows: int
    samples: int
    bad: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    cut: int = 0
    others: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class Rendered:
    """What became of one row: a sample's segments and margin, or why there is none."""

    row: int
    fate: Literal["kept", "cut", "dropped", "other", "bad"]
    segments: tuple[Segment, ...] = ()
    margin: float = 0.0
    reason: str = ""
    what: str = ""


def prepare(path: Path, rendering: Rendering, workers: int | None, cache_dir: Path) -> Prepared:
    """The store of a file's rows, made by so many processes (None: one a processor) unless it stands already.

    Raises DataError for a file that cannot be read, a chat template that cannot be trained with, and bad rows unless
    they may be left out: it names the first, and counts them by reason.
    """
    tokenizer = open_tokenizer(rendering.tokenizer)
    _masks.cache_clear()  # another tokenizer may lie there by now
    _masks(rendering)  # a template that cannot be trained with is no row's fault
    key = key_of(path, rendering, tokenizer)
    prefix = cache_dir / f"rows-{key[:32]}"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with alone(prefix):  # another run may be writing it
        about = read_about(prefix)
        if about is not None and about["key"] == key:
            return Prepared(prefix, **about["counts"])
        with StoreWriter(prefix, tokenizer.identity) as writer:
            prepared = _write(path, rendering, workers or len(os.sched_getaffinity(0)), writer)
            counts = {name: value for name, value in asdict(prepared).items() if name != "prefix"}
            writer.finish(key, rendering.columns, counts)
    return prepared


def key_of(path: Path, rendering: Rendering, tokenizer: Tokenizer) -> str:
    """Another one wherever the samples may be others: a tokenizer counts by its content, not by where it lies."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    named = [sorted(tokenizer.stop_ids), tokenizer.beginning, tokenizer.named_tokens]
    decides = {**asdict(rendering), "tokenizer": [asdict(tokenizer.identity), *named]}
    known = [VERSION, digest.hexdigest(), decides]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _write(path: Path, rendering: Rendering, workers: int, writer: StoreWriter) -> Prepared:
    bad: Counter[str] = Counter()
    fates: Counter[str] = Counter()
    first_bad: str | None = None
    with Progress(str(path), path.stat().st_size) as progress:
        for rows, some in _rendered(path, rendering, workers):
            for one in some:
                fates[one.fate] += 1
                if one.fate == "bad":
                    bad[one.reason] += 1
                    told = f"{place_of(path, one.row)}: {one.what}"
                    first_bad = first_bad or told
                    if rendering.bad_rows == "skip" and fates["bad"] <= NAMED:
                        log.warning("%s; it is left out", told)
                elif one.segments:
                    numbers = {"row": float(one.row), "margin": one.margin}
                    writer.add(one.segments, {name: numbers[name] for name in rendering.columns})
            progress.advance(rows.read)
    if first_bad is not None and rendering.bad_rows == "stop":
        counted = ", ".join(f"{reason} {count}" for reason, count in bad.most_common())
        raise DataError(
            f"{first_bad}; {fates['bad']} of {fates.total()} rows are bad ({counted}): correct them, or leave them out "
            f"with data.bad_rows = skip"
        )
    return Prepared(
        writer.prefix, fates.total(), writer.samples, dict(bad.most_common()), fates["dropped"], fates["cut"],
        fates["other"], writer.tokens, writer.trained_tokens,
    )  # fmt: skip


def _rendered(path: Path, rendering: Rendering, workers: int) -> Iterator[tuple[Rows, list[Rendered]]]:
    """Each part of the file with what its rows become, in the file's order whatever the number of workers."""
    render, parts = partial(render_rows, rendering), read_rows(path)
    first = tuple(islice(parts, ALONE))
    if workers == 1 or len(first) < ALONE:  # to start processes would take longer
        yield from ((rows, render(rows)) for rows in chain(first, parts))
        return
    with _pool(workers) as pool:
        yield from map_in_order(pool, render, chain(first, parts), ahead=4 * workers)


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    pool = worker_pool(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def render_rows(rendering: Rendering, rows: Rows) -> list[Rendered]:
    """In a worker."""
    return [render_row(number, row, rendering) for number, row in rows]


def render_row(number: int, row: bytes | Row, rendering: Rendering) -> Rendered:
    try:
        found = parsed(row)
        if rendering.criterion is not None and read_criterion(found) not in (None, rendering.criterion):
            return Rendered(number, "other")
        segments, margin = _segments(found, rendering)
    except BadRow as bad:
        return Rendered(number, "bad", reason=bad.reason, what=str(bad))
    return _fitted(Rendered(number, "kept", segments, margin), rendering)


def _segments(row: Row, rendering: Rendering) -> tuple[tuple[Segment, ...], float]:
    """Raises BadRow."""
    masks = _masks(rendering)
    if rendering.kind == "dialogue":
        return (masks.segment(read_dialogue(row, rendering.system_prompt)),), 0.0
    pair = read_pair(row, rendering.system_prompt)
    segments = masks.segment(pair.chosen), masks.segment(pair.rejected)
    if _same(segments):
        raise BadRow("chosen equals rejected", "has the same tokens as chosen and as rejected")
    return segments, pair.margin


def _fitted(one: Rendered, rendering: Rendering) -> Rendered:
    """Within `longest` tokens: as it is, dropped, or cut at the end; of a pair the longer answer loses more."""
    lengths = [len(segment.tokens) for segment in one.segments]
    if sum(lengths) <= rendering.longest:
        return one
    if rendering.overlong == "drop":
        return Rendered(one.row, "dropped")
    room = rendering.longest  # of each segment
    if len(lengths) == 2:
        room = max(room // 2, room - min(lengths))
    cut = tuple(Segment(segment.tokens[:room], segment.trained[:room]) for segment in one.segments)
    if _same(cut) or not all(segment.trained.any() for segment in cut):
        return Rendered(one.row, "dropped")
    return replace(one, fate="cut", segments=cut)


def _same(segments: tuple[Segment, ...]) -> bool:
    """Whether the answers of a pair are the same tokens."""
    return len(segments) == 2 and np.array_equal(segments[0].tokens, segments[1].tokens)


@lru_cache(maxsize=2)
def _masks(rendering: Rendering) -> Masks:
    """Opened once a process. Raises DataError for a template that cannot be trained with."""
    masks = Masks(open_tokenizer(rendering.tokenizer), rendering.template)
    masks.answers  # noqa: B018  # which tries the template
    return masks
