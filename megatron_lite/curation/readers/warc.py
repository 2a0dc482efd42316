"""Pages of WARC files and texts of WET files, compressed or not. A document's number is its record's in the file."""

import os
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any

from fastwarc.stream_io import GzipReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.curation.config import Format, ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers.html import decode_html, extract
from megatron_lite.curation.readers.inputs import Slice
from megatron_lite.curation.readers.opening import BUFFER, open_input
from megatron_lite.curation.readers.refusals import Refusal, Refused, check_size, check_text, damage, decode

# Requests, metadata and the like are no documents and pass uncounted.
_KINDS = WarcRecordType.response | WarcRecordType.conversion
_PLAIN = (".warc", ".wet")
_END = b"\r\n\r\n"  # of every record
_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(part: Slice, form: Format, reading: ReadingConfig) -> Iterator[Document | Refusal]:
    with open_input(part.path) as raw:
        following = 0
        try:
            for number, record in enumerate(_records(raw, part.path)):
                try:
                    yield _document(part, number, record, form, reading)
                except Refused as refused:
                    place = f"{part.path}: record {number} at byte {record.stream_pos}"
                    yield refused.at(f"{place}, {record.headers.get('WARC-Target-URI')}")
                following = number + 1
        except (OSError, *DAMAGE) as error:
            yield damage(error, f"{part.path}: from record {following} on")


def _records(raw: BufferedIOBase, path: str) -> Iterator[WarcRecord]:
    """Raises EOFError for a file that is cut short; fastwarc takes a header or member without an end for its end."""
    members = GzipReader(raw) if path.endswith(".gz") else None
    plain = path.endswith(_PLAIN)
    detect = not (members or plain)  # .zst, .lz4, .br
    yield from ArchiveIterator(members or raw, record_types=_KINDS, parse_http=False, stream_detect=detect)
    if members:
        raw.seek(members.frame_start_position() or 0)
        with decompressed(raw, path) as last_member:
            while last_member.read1(BUFFER):
                continue
    elif plain:
        raw.seek(max(0, raw.seek(0, os.SEEK_END) - len(_END)))
        if (end := raw.read()) not in (b"", _END):
            raise EOFError(f"the file ends with {end!r}, a record with {_END!r}")


def _document(part: Slice, number: int, record: WarcRecord, form: Format, reading: ReadingConfig) -> Document:
    length = record.content_length
    check_size(length, reading)
    record.freeze()
    if record.content_length < length:  # fastwarc takes the file's end for the record's
        raise EOFError(f"the file ends {length - record.content_length} bytes before the record does")
    notes: dict[str, Any] = {"date": record.headers.get("WARC-Date")}
    language = None
    if record.record_type == WarcRecordType.conversion:
        text = decode(record.reader.read(), reading, notes)
        language = record.headers.get("WARC-Identified-Content-Language")
    else:
        text = _page(record, form, reading, notes)
    name = part.file.source
    url = record.headers.get("WARC-Target-URI")
    return Document(f"{name}/{part.file.number}/{number}", check_text(text, reading, notes), name, url, language, notes)


def _page(record: WarcRecord, form: Format, reading: ReadingConfig, notes: dict[str, Any]) -> str:
    """The text of a response."""
    try:
        record.parse_http(auto_decode="all")
        # One byte more than allowed: what was packed small may be large.
        payload = record.reader.read(reading.max_record_bytes + 1)
    except (OSError, ValueError) as error:
        raise Refused("bad_http", str(error)) from None
    status = record.http_headers and record.http_headers.status_code
    if not status:
        raise Refused("bad_http", "no status line")
    if not 200 <= status < 300:
        raise Refused("http_status", str(status))
    check_size(len(payload), reading)
    kind = record.http_content_type
    if kind == "text/plain":
        return decode(payload, reading, notes)
    if kind not in _PAGES:
        raise Refused("not_html", str(kind))
    return extract(decode_html(payload, record.http_charset), form.html_skip)
