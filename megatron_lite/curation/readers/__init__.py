"""Inputs to documents: JSONL, Parquet, WARC and WET, folders of text, code and HTML, local or at any fsspec URL."""

from collections.abc import Iterator

from megatron_lite.curation.config import Format, ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers.folders import read_file
from megatron_lite.curation.readers.inputs import InputFile, Slice, cut, deal, list_files
from megatron_lite.curation.readers.jsonl import read_jsonl
from megatron_lite.curation.readers.parquet import read_parquet
from megatron_lite.curation.readers.refusals import REASONS, Refusal
from megatron_lite.curation.readers.warc import read_warc

__all__ = ["REASONS", "InputFile", "Refusal", "Slice", "cut", "deal", "list_files", "read"]

READERS = {"jsonl": read_jsonl, "parquet": read_parquet, "warc": read_warc, "wet": read_warc, "files": read_file}


def read(part: Slice, form: Format, reading: ReadingConfig) -> Iterator[Document | Refusal]:
    """The documents of a slice in order, and in their places what could not be read as one."""
    try:
        yield from READERS[form.kind](part, form, reading)
    except (FileNotFoundError, PermissionError) as error:
        yield Refusal("unreadable_file", part.path, error.strerror or str(error))
