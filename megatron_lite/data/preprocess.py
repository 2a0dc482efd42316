"""Text files to indexed data sets, in one pass that may be killed at any moment and started again.

Workers read and tokenize pieces of the input (pieces.py, encode.py); this process alone writes. The output is the same
from any number of workers, killed or not: pieces are cut by the files alone and written in their order. Now and then
all that was written goes to the disk, then a journal that says how far that is; a run that finds the journal of the
same input, tokenizer and settings takes back what was written after it and goes on from there.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from megatron_lite.data.encode import Encoded, Settings, encode
from megatron_lite.data.fast_tokenizer import FastTokenizer, fast_tokenizer
from megatron_lite.data.indexed import idx_path, token_dtype
from megatron_lite.data.indexed_writer import IndexedDatasetWriter, Written, partial_paths
from megatron_lite.data.journal import Journal, describe_run, journal_path
from megatron_lite.data.jsonl import total_bytes
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.pieces import PIECE_BYTES, Piece, Place, cut_inputs
from megatron_lite.data.sample import check_free_disk, take_sample
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.sidecar import Sidecar
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.progress import Progress
from megatron_lite.workers import map_in_order, worker_pool

PIECES_AHEAD = 3  # a worker, begun before the oldest is written
SAVE_SECONDS = 30.0  # between two journals: so much work is lost at most, and done again
NAMED_MALFORMED = 5  # skipped records that the report names


@dataclass
class Report:
    """What a run did, before and after it was interrupted; `lines` says it in words."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0
    lost_marks: int = 0
    unspelled: int = 0
    malformed: dict[str, int] = field(default_factory=dict)  # records by kind of fault
    examples: list[str] = field(default_factory=list)

    def add(self, path: str, first_record: int, encoded: Encoded) -> None:
        self.documents += len(encoded.documents[0].sequences)
        self.tokens += sum(len(documents.tokens) for documents in encoded.documents)
        self.text_bytes += sum(documents.text_bytes for documents in encoded.documents)
        self.empty += encoded.empty
        self.lost_marks += encoded.lost_marks
        self.unspelled += encoded.unspelled
        self.malformed = dict(Counter(self.malformed) + Counter(fault.kind for fault in encoded.malformed))
        named = encoded.malformed[: NAMED_MALFORMED - len(self.examples)]
        self.examples += [f"{path}:{first_record + fault.record}: {fault.reason}" for fault in named]

    def lines(self) -> Iterator[str]:
        rate = self.text_bytes / max(self.tokens, 1)
        yield f"{self.documents} documents, {self.text_bytes} bytes, {self.tokens} tokens, {rate:.2f} bytes a token"
        if self.empty:
            yield f"{self.empty} empty texts, documents without a sequence"
        if self.lost_marks:
            yield f"{self.lost_marks} characters U+2581 in the text will decode as spaces"
        if self.unspelled:
            yield f"{self.unspelled} characters in the text are lost: the tokenizer lacks their bytes"
        if self.malformed:
            yield f"{sum(self.malformed.values())} malformed records skipped:"
            yield from (f"  {count} {kind}" for kind, count in Counter(self.malformed).most_common())
            yield "the first:"
            yield from (f"  {example}" for example in self.examples)


def preprocess(
    inputs: Sequence[str],
    output_prefix: str,
    settings: Settings,
    *,
    workers: int,
    skip_malformed: bool,
    say: Callable[[str], None] = print,
) -> Report:
    """Write {output_prefix}_{key}_{level}.{bin,idx,json} for every key; `say` gets a line on what is notable.

    A text is one document of one sequence, or of its sentences; `append_eod` puts the tokenizer's end-of-document id
    behind it; an empty text is a document without sequences. Raises DataError at the first malformed record unless
    `skip_malformed`; then the report counts them. Raises UsageError where the disk has no room for the output, and for
    SentencePiece's encoder with another tokenizer. Whatever is raised, no output is left half written, and what the
    journal has stays for the next run.
    """
    total = total_bytes(inputs)
    sample = take_sample(inputs, settings.json_keys)
    if settings.fast:
        tokenizer, line = fast_tokenizer(settings.tokenizer_model, sample.texts)
        settings = replace(settings, fast=isinstance(tokenizer, FastTokenizer))
        say(line)
    else:
        tokenizer = open_tokenizer(settings.tokenizer_model)
        if not isinstance(tokenizer, SentencePieceTokenizer):
            raise UsageError(
                f"--encoder sentencepiece: {tokenizer.path} is a tokenizer.json, which SentencePiece does not read; "
                f"--encoder auto takes it"
            )
    run = Binarization(inputs, output_prefix, settings, tokenizer, skip_malformed)
    if run.resumed:
        say(
            f"going on at {inputs[run.place.file] if run.place.file < len(inputs) else 'the end'}, record "
            f"{run.place.record}; {run.report.documents} documents stand"
        )
    else:
        check_free_disk(output_prefix, sample.output_bytes(total, tokenizer, settings))
        journal_path(output_prefix).unlink(missing_ok=True)  # of another run, whose bytes are about to go
    try:
        with run.writers(), worker_pool(workers) as pool, Progress("tokenize", total, run.place.position) as progress:
            pieces = cut_inputs(inputs, settings.json_keys, run.place, PIECE_BYTES)
            try:
                for piece, encoded in map_in_order(pool, partial(encode, settings), pieces, PIECES_AHEAD * workers):
                    run.add(piece, encoded)
                    progress.advance(piece.position, f"{run.report.documents} documents, {run.report.tokens} tokens")
            finally:
                pool.shutdown(cancel_futures=True)
            run.finish()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{output_prefix}: no space left on the disk; with more of it, the next run goes on") from None
    journal_path(output_prefix).unlink(missing_ok=True)
    return run.report


class Binarization:
    """What this process writes, and how far it is."""

    def __init__(
        self, inputs: Sequence[str], output_prefix: str, settings: Settings, tokenizer: Tokenizer, skip_malformed: bool
    ):
        self.inputs, self.output_prefix, self.settings = inputs, output_prefix, settings
        self.tokenizer, self.skip_malformed = tokenizer, skip_malformed
        self.description = self._describe()
        journal = Journal.load(output_prefix, self.description)
        self.resumed = journal is not None
        self.place = journal.place if journal else Place()
        self.report = Report(**journal.report) if journal else Report()
        self._saved: list[Written] = list(journal.written) if journal else []  # of each key, from the first save on
        self._saved_at = time.monotonic()
        self._writers: list[IndexedDatasetWriter] = []
        self._check_malformed()

    @contextmanager
    def writers(self) -> Iterator[None]:
        """Opens the writers; on leaving, the data sets appear."""
        with ExitStack() as stack:
            keys = self.settings.json_keys
            before: Sequence[Written | None] = self._saved or [None] * len(keys)
            for key, written in zip(keys, before, strict=True):
                prefix = f"{self.output_prefix}_{key}_{self.settings.level}"
                dtype, identity = token_dtype(self.tokenizer.vocab_size), self.tokenizer.identity
                if written and was_published(prefix, written):
                    for path in partial_paths(prefix).values():
                        path.unlink(missing_ok=True)
                    continue
                writer = IndexedDatasetWriter(prefix, dtype, identity, written)
                self._writers.append(stack.enter_context(writer))
            yield

    def add(self, piece: Piece, encoded: Encoded) -> None:
        """The next piece. Raises DataError for a malformed record that may not be skipped."""
        at = self.place if piece.file == self.place.file else Place(piece.file)
        self.report.add(self.inputs[piece.file], at.record, encoded)
        self._check_malformed()
        for writer, documents in zip(self._writers, encoded.documents, strict=True):
            writer.add_documents(documents.tokens, documents.lengths, documents.sequences, documents.text_bytes)
        self.place = Place(at.file, at.piece + 1, at.record + encoded.records, piece.position)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    def finish(self) -> None:
        """All pieces are written. Raises DataError where the input has changed meanwhile."""
        if self._describe() != self.description:
            raise DataError(f"the input changed while it was read: {', '.join(self.inputs)}; start again")
        self.place = replace(self.place, file=len(self.inputs), piece=0)
        self._save()

    def _save(self) -> None:
        # The last journal stands while data sets appear one by one; what a published one held is in it already.
        if len(self._writers) == len(self.settings.json_keys):
            self._saved = [writer.save() for writer in self._writers]
        Journal(self.description, self.place, self._saved, asdict(self.report)).save(self.output_prefix)
        self._saved_at = time.monotonic()

    def _check_malformed(self) -> None:
        if self.report.malformed and not self.skip_malformed:
            raise DataError(f"{self.report.examples[0]} (--on-error skip counts such records and goes on)")

    def _describe(self) -> dict[str, Any]:
        return describe_run(self.inputs, self.tokenizer.sha256, self.settings, PIECE_BYTES)


def was_published(prefix: str, written: Written) -> bool:
    """Whether a run that was killed at its very end had already renamed this data set into place."""
    sidecar = Sidecar.load(prefix) if idx_path(prefix).exists() else None
    return (
        sidecar is not None
        and not partial_paths(prefix)["bin"].exists()
        and all(getattr(sidecar, name) == count for name, count in asdict(written).items() if name != "text_bytes")
    )
