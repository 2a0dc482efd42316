"""JSONL to indexed data sets: this process reads and writes, worker processes parse and tokenize.

The output is the same from any number of workers: batches are cut by size alone and written in the order read.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from megatron_lite.data.indexed import token_dtype
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.jsonl import Batch, MalformedLine, parse_texts, read_batches, total_bytes
from megatron_lite.data.progress import Progress
from megatron_lite.data.tokenizer import SPACE_MARK, Tokenizer
from megatron_lite.errors import DataError, MegatronLiteError

BATCH_BYTES = 1 << 20  # large enough that passing it to a worker costs little beside tokenizing it
BATCHES_AHEAD = 4  # a worker, read before the oldest is written
NAMED_MALFORMED = 5  # skipped lines that the report names

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """What a worker has to know."""

    tokenizer_model: str
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False


@dataclass(frozen=True)
class Documents:
    """Documents of one key: all tokens, the length of each sequence, the number of sequences of each document."""

    tokens: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """What became of a batch."""

    documents: tuple[Documents, ...]  # one a key
    malformed: list[str]  # "file:line: what is wrong"
    text_bytes: int
    lost_marks: int  # U+2581 in the text that the tokenizer cannot spell and turns into spaces
    position: int


@dataclass
class Report:
    """What a run did; `lines` says it in words."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    lost_marks: int = 0
    malformed: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, batch: Encoded) -> None:
        self.documents += len(batch.documents[0].sequences)
        self.tokens += sum(len(documents.tokens) for documents in batch.documents)
        self.text_bytes += batch.text_bytes
        self.lost_marks += batch.lost_marks
        self.malformed += len(batch.malformed)
        self.examples += batch.malformed[: NAMED_MALFORMED - len(self.examples)]

    def lines(self) -> Iterator[str]:
        rate = self.text_bytes / max(self.tokens, 1)
        yield f"{self.documents} documents, {self.text_bytes} bytes, {self.tokens} tokens, {rate:.2f} bytes a token"
        if self.lost_marks:
            yield f"{self.lost_marks} characters U+2581 in the text will decode as spaces"
        if self.malformed:
            yield f"{self.malformed} malformed lines skipped, the first:"
            yield from (f"  {example}" for example in self.examples)


def preprocess(
    inputs: Sequence[str], output_prefix: str, settings: Settings, *, workers: int, skip_malformed: bool
) -> Report:
    """Write {output_prefix}_{key}_document.{bin,idx,json} for every key.

    A text is one document of one sequence, `append_eod` puts the tokenizer's end-of-document id behind it; an empty
    text is a document without sequences. Raises DataError at the first malformed line unless `skip_malformed`; then the
    report counts them. Whatever is raised, no output is left half written.
    """
    tokenizer = Tokenizer(settings.tokenizer_model)
    report, total = Report(), total_bytes(inputs)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedDatasetWriter(
                    f"{output_prefix}_{key}_document", token_dtype(tokenizer.vocab_size), tokenizer.identity
                )
            )
            for key in settings.json_keys
        ]
        # Spawned, not forked: a fork of a process with threads (tqdm has one) may hang.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
        stack.callback(pool.shutdown, cancel_futures=True)
        progress = stack.enter_context(Progress("tokenize", total))
        batches = read_batches(inputs, BATCH_BYTES)
        for encoded in map_in_order(pool, partial(encode, settings), batches, BATCHES_AHEAD * workers):
            if encoded.malformed and not skip_malformed:
                raise DataError(f"{encoded.malformed[0]} (--on-error skip counts such lines and goes on)")
            for writer, documents in zip(writers, encoded.documents, strict=True):
                writer.add_documents(documents.tokens, documents.lengths, documents.sequences)
            report.add(encoded)
            progress.advance(encoded.position, f"{report.documents} documents, {report.tokens} tokens")
    return report


def end_with_parent() -> None:
    """Make this worker exit when its parent is gone; killed by force, the parent could not tell it to."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def encode(settings: Settings, batch: Batch) -> Encoded:
    """Parse and tokenize a batch; runs in a worker."""
    tokenizer = _tokenizer(settings.tokenizer_model)
    dtype, end = token_dtype(tokenizer.vocab_size), [tokenizer.eod_id] if settings.append_eod else []
    encoded: list[list[list[int]]] = [[] for _ in settings.json_keys]
    malformed, text_bytes, lost_marks = [], 0, 0
    for number, line in enumerate(batch.lines, batch.first_line):
        try:
            texts = parse_texts(line, settings.json_keys)
        except MalformedLine as error:
            malformed.append(f"{batch.path}:{number}: {error}")
            continue
        for documents, text in zip(encoded, texts, strict=True):
            documents.append(tokenizer.encode(text) + end if text else [])
            text_bytes += len(text.encode())
            lost_marks += 0 if tokenizer.spells_space_mark else text.count(SPACE_MARK)
    packed = tuple(_pack(documents, dtype) for documents in encoded)
    return Encoded(packed, malformed, text_bytes, lost_marks, batch.position)


def _pack(documents: list[list[int]], dtype: np.dtype) -> Documents:
    lengths = np.array([len(tokens) for tokens in documents], np.int64)
    tokens = np.empty(lengths.sum(), dtype)
    ends = np.cumsum(lengths)
    for ids, begin, end in zip(documents, ends - lengths, ends, strict=True):
        tokens[begin:end] = ids
    return Documents(tokens, lengths[lengths > 0], (lengths > 0).astype(np.int64))


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    """Loaded once a worker."""
    return Tokenizer(path)


def map_in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the items' order, with at most `ahead` items taken and not yet given back.

    `pool.map` would take all items first: the whole corpus in memory.
    """
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise MegatronLiteError(
            "a worker process died; the machine may be out of memory: try fewer --workers"
        ) from None
