"""Inputs for tests of curation: WARC records by hand, and a shorthand for reading."""

import gzip
from pathlib import Path

from megatron_lite.curation.config import ReadingConfig, SourceConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers import Refusal, cut, list_files, read


def read_all(
    path: str | Path, kind: str, shard_bytes: int = 10**9, reading: dict | None = None, **options
) -> tuple[list[Document], list[Refusal]]:
    """Documents and refusals of all slices of a path, in order."""
    source = SourceConfig(kind=kind, paths=(str(path),), **options)
    limits = ReadingConfig(**(reading or {}))
    files = list_files("s", source)
    found = [one for part in cut(files, kind, shard_bytes) for one in read(part, source.format, limits)]
    documents = [one for one in found if isinstance(one, Document)]
    return documents, [one for one in found if isinstance(one, Refusal)]


def warc_record(
    payload: bytes,
    url: str = "http://example.org/",
    kind: str = "response",
    http: str | None = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n",
    more: str = "",
    length: int | None = None,
) -> bytes:
    """A WARC record as ISO 28500 writes it; `http` is the head of a response."""
    block = (f"{http}\r\n".encode() if http else b"") + payload
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
        f"WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789abc>\r\n{more}"
        f"Content-Type: {'application/http; msgtype=response' if http else 'text/plain'}\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def page(*paragraphs: str) -> bytes:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f"<!doctype html><html><head><title>t</title></head><body><main>{body}</main></body></html>".encode()


def members(records: list[bytes]) -> bytes:
    """Each record a gzip member of its own, as .warc.gz files are."""
    return b"".join(gzip.compress(record) for record in records)
