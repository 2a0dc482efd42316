"""Documents of a shard in batches, since a call of C++ for each would cost more than the work in it."""

from collections.abc import Iterator
from pathlib import Path

from megatron_lite.curation.documents import Document
from megatron_lite.curation.shards import read_shard

BATCH = 8 << 20  # characters of text


def read_batches(shard: str | Path, characters: int = BATCH) -> Iterator[tuple[int, list[Document]]]:
    """(row of the first one, documents) of a shard in order."""
    begin, batch, held = 0, [], 0
    for document in read_shard(shard):
        batch.append(document)
        held += len(document.text)
        if held >= characters:
            yield begin, batch
            begin, batch, held = begin + len(batch), [], 0
    if batch:
        yield begin, batch
