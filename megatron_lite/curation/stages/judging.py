"""Judged documents of a shard to a shard of those that stay and a record of those that do not."""

from collections.abc import Iterable
from typing import Any

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.engine import Outputs
from megatron_lite.curation.shards import RecordWriter, ShardWriter
from megatron_lite.curation.tally import Size, Tally

EXCERPT = 300  # characters of a dropped document to look at; the whole stands in the stage before

Judged = tuple[Size, Document, Drop | None]  # its size as it came; itself, edited perhaps, its size noted again


def write_judged(judged: Iterable[Judged], outputs: Outputs) -> dict[str, Any]:
    """Write `documents` and `dropped`; returns the tally."""
    tally = Tally()
    with ShardWriter(outputs.path("documents")) as kept, RecordWriter(outputs.path("dropped")) as dropped:
        for entered, document, drop in judged:
            flow = tally[document.source]
            flow.entered += entered
            if drop is None:
                kept.write(document)
                flow.leave(document)
            else:
                dropped.write_record(drop_record(document, drop))
                flow.drop(drop.rule, entered)
    return tally.as_json()


def drop_record(document: Document, drop: Drop) -> dict[str, Any]:
    return {
        "id": document.id,
        "source": document.source,
        "url": document.url,
        "language": document.language,
        "rule": drop.rule,
        "detail": drop.detail,
        "excerpt": document.text[:EXCERPT],
    }
