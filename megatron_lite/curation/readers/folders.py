"""Files that are a document each: text and code as they are, pages of HTML by their ending extracted."""

from collections.abc import Iterator
from typing import Any

from megatron_lite.compression import DAMAGE, decompressed
from megatron_lite.curation.config import Format, ReadingConfig
from megatron_lite.curation.documents import Document
from megatron_lite.curation.readers.html import decode_html, extract
from megatron_lite.curation.readers.inputs import Slice
from megatron_lite.curation.readers.opening import open_input, read_up_to
from megatron_lite.curation.readers.refusals import Refusal, Refused, check_size, check_text, damage, decode, excerpt_of

PAGES = (".html", ".htm", ".xhtml")


def read_file(part: Slice, form: Format, reading: ReadingConfig) -> Iterator[Document | Refusal]:
    notes: dict[str, Any] = {"path": part.file.name}
    try:
        text = _read(part, form, reading, notes)
        name = part.file.source
        yield Document(f"{name}/{part.file.number}/0", check_text(text, reading, notes), name, metadata=notes)
    except Refused as refused:
        yield refused.at(part.path)
    except DAMAGE as error:
        yield damage(error, part.path)


def _read(part: Slice, form: Format, reading: ReadingConfig, notes: dict[str, Any]) -> str:
    with open_input(part.path) as raw, decompressed(raw, part.path) as file:
        data = read_up_to(file, reading.max_record_bytes)
    check_size(len(data), reading)
    if part.file.name.removesuffix(".gz").removesuffix(".zst").lower().endswith(PAGES):
        return extract(decode_html(data, None), form.html_skip)
    if b"\0" in data:
        raise Refused("binary_file", f"byte {data.index(0)} is NUL", excerpt_of(data))
    return decode(data.removeprefix(b"\xef\xbb\xbf"), reading, notes)
