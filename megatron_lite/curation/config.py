"""The typed tree of a curation's CONFIG.yaml."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from megatron_lite.config.tree import Positive, Section

Strings = Annotated[tuple[str, ...], Field(strict=False)]


class FieldsConfig(Section):
    """Where a record of JSONL or Parquet holds what; `keep` names further fields to note in the document's metadata."""

    text: str = "text"
    url: str = "url"
    language: str = "language"
    keep: Strings = ()


class SourceConfig(Section):
    """Files of one kind and origin.

    `paths` are files, folders or globs, local or at any fsspec URL; `exclude` are globs of names below a folder or a
    glob's fixed part. `required: false` lets a path be empty. `files` are documents one by one: text, code, and HTML
    by its ending.
    """

    kind: Literal["jsonl", "parquet", "warc", "wet", "files"]
    paths: Annotated[Strings, Field(min_length=1)]
    exclude: Strings = ()
    required: bool = True
    content: Literal["prose", "code"] = "prose"
    languages: Strings = ()
    fields: FieldsConfig = FieldsConfig()
    html_skip: Strings = ()


class ReadingConfig(Section):
    """What is no document: a record above `max_record_bytes`, and bytes that are no UTF-8 unless they are replaced."""

    max_record_bytes: Positive = 32_000_000
    invalid_utf8: Literal["refuse", "replace"] = "refuse"


class CurationConfig(Section):
    """The whole tree; its keys are the YAML file's."""

    output: str
    engine: Literal["pool", "ray"] = "pool"
    workers: Positive = 1
    ray_address: str | None = None
    shard_bytes: Positive = 128_000_000
    sources: Annotated[Mapping[str, SourceConfig], Field(min_length=1)]
    reading: ReadingConfig = ReadingConfig()
