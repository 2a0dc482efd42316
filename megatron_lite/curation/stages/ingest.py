"""Slices of inputs to shards of documents."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_lite.curation.config import ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.engine import Outputs, Task
from megatron_lite.curation.readers import Refusal, read
from megatron_lite.curation.shards import RecordWriter, ShardWriter
from megatron_lite.curation.tally import Size, Tally, note_size, noted_size

NOTED = ("removed_nuls", "replaced_characters")  # what readers mend, counted over all documents


@dataclass(frozen=True)
class Ingest:
    """A task reads slices of one source, its argument the source's Format.

    Writes `documents`, a new file after `shard_bytes` of text, and `refused`.
    """

    version: ClassVar[int] = 1

    reading: ReadingConfig
    shard_bytes: int

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        with ExitStack() as stack:
            writer = _Writer(outputs, self.shard_bytes, stack)
            for part in task.inputs:
                for one in read(part, task.argument, self.reading):
                    if isinstance(one, Refusal):
                        writer.refuse(part.file.source, one)
                    else:
                        writer.write(one)
        return {"tally": writer.tally.as_json(), "mended": {key: writer.mended[key] for key in NOTED}}


class _Writer:
    def __init__(self, outputs: Outputs, shard_bytes: int, stack: ExitStack):
        self.tally = Tally()
        self.mended: Counter[str] = Counter()
        self._outputs, self._shard_bytes, self._stack = outputs, shard_bytes, stack
        self._refused: RecordWriter | None = None
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._shard = self._stack.enter_context(ShardWriter(self._outputs.path("documents")))
        self._held = 0

    def write(self, document: Document) -> None:
        note_size(document)
        size = noted_size(document)
        if self._held and self._held + size.bytes > self._shard_bytes:
            self._begin_shard()
        self._held += size.bytes
        self._shard.write(document)
        flow = self.tally[document.source]
        flow.entered += size
        flow.leave(document)
        self.mended.update({key: document.metadata[key] for key in NOTED if key in document.metadata})

    def refuse(self, source: str, refusal: Refusal) -> None:
        """A refused record is a document without size."""
        if self._refused is None:
            self._refused = self._stack.enter_context(RecordWriter(self._outputs.path("refused")))
        self._refused.write_record({"source": source, **vars(refusal)})
        flow = self.tally[source]
        flow.entered += Size(1)
        flow.drop(refusal.reason, Size(1))
