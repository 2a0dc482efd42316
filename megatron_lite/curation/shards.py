"""Shard files: one JSON object a line, zstd-compressed (.jsonl.zst).

The same records give the same bytes. A writer writes at the path it is given; a stage gives it a temporary one and
publishes it with its manifest row (curation/engine/stage.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import zstandard

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.curation.documents import Document
from megatron_lite.errors import DataError

ENDING = ".jsonl.zst"
LEVEL = 1  # of zstd: an eighth more bytes than its default, in less than half the time
READ_BYTES = 1 << 20  # of text taken from the decompressor at once


class RecordWriter:
    """Writes JSON objects to a shard file. Use in a `with` statement."""

    def __init__(self, path: str | Path):
        self.records = 0
        self._file = Path(path).open("wb")  # noqa: SIM115 (closed with the compressor)
        # With a checksum of the text in the frame, damage on the disk is found by whoever reads it.
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_writer(self._file)

    def write_record(self, record: dict[str, Any]) -> None:
        self._compressor.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.records += 1

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._compressor.close()  # ends the frame and closes the file


class ShardWriter(RecordWriter):
    """Writes documents to a shard file. Use in a `with` statement."""

    def write(self, document: Document) -> None:
        self.write_record(
            {
                "id": document.id,
                "source": document.source,
                "url": document.url,
                "language": document.language,
                "metadata": document.metadata,
                "text": document.text,
            }
        )

    def __enter__(self) -> "ShardWriter":
        return self


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a shard file in order. Raises DataError for one that is missing, damaged or cut short."""
    number = 0
    try:
        with Path(path).open("rb") as raw, decompressed(raw, str(path)) as text:
            while lines := text.readlines(READ_BYTES):
                for line in lines:
                    number += 1
                    yield orjson.loads(line)
    except DAMAGE as error:
        raise DataError(f"{path}: damaged or cut short after record {number} ({error})") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: record {number} is no valid JSON: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def read_shard(path: str | Path) -> Iterator[Document]:
    """The documents of a shard file in order. Raises DataError as `read_records` does."""
    for record in read_records(path):
        yield Document(**record)
