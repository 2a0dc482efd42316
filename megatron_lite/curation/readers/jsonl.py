"""Documents of JSONL files, plain (whole or a range of bytes), .gz or .zst.

A document's number is the byte, in the text, where its line begins: the same for a file and its compressed copy, and
for any size of shards.
"""

from collections.abc import Iterator
from math import inf
from typing import Any

import orjson

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.curation.config import Format, ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers.inputs import Slice
from megatron_lite.curation.readers.opening import open_input
from megatron_lite.curation.readers.refusals import Refusal, Refused, check_text, damage, decode, excerpt_of, too_large
from megatron_lite.lines import TooLong, read_lines


def read_jsonl(part: Slice, form: Format, reading: ReadingConfig) -> Iterator[Document | Refusal]:
    offset = part.begin
    end = inf if part.end is None else part.end
    try:
        with open_input(part.path) as raw, decompressed(raw, part.path) as text:
            for offset, line in read_lines(text, reading.max_record_bytes, part.begin, end):
                try:
                    yield _document(part, offset, line, form, reading)
                except Refused as refused:
                    yield refused.at(f"{part.path}: line at byte {offset}")
    except DAMAGE as error:
        yield damage(error, f"{part.path}: after the line at byte {offset}")


def _document(part: Slice, offset: int, line: bytes | TooLong, form: Format, reading: ReadingConfig) -> Document:
    if isinstance(line, TooLong):
        raise too_large(line.length, reading)
    if not line or line.isspace():
        raise Refused("blank_line")
    notes: dict[str, Any] = {}
    record = _parse(line, reading, notes)
    fields = form.fields
    if fields.text not in record:
        raise Refused("no_text", f"no key {fields.text!r}", excerpt_of(line))
    text = check_text(record[fields.text], reading, notes)
    notes |= {key: record[key] for key in fields.keep if key in record}
    url, language = (_string(record.get(key)) for key in (fields.url, fields.language))
    return Document(f"{part.file.source}/{part.file.number}/{offset}", text, part.file.source, url, language, notes)


def _parse(line: bytes, reading: ReadingConfig, notes: dict[str, Any]) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        # Either the bytes are no UTF-8, or it is no JSON.
        try:
            record = orjson.loads(decode(line, reading, notes))
        except orjson.JSONDecodeError as error:
            raise Refused("malformed_json", str(error), excerpt_of(line)) from None
    if not isinstance(record, dict):
        raise Refused("malformed_json", f"a {type(record).__name__}, not an object", excerpt_of(line))
    return record


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
