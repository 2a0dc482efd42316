"""Records that become no document: counted by name, set aside, never lost silently."""

from dataclasses import dataclass
from typing import Any

from megatron_lite.curation.config import ReadingConfig

EXCERPT = 200  # characters of a refused record that are kept to look at

# Why a record is refused. The first word of a file's reasons says how much of it is missing.
REASONS = {
    "blank_line": "a line of JSONL holds nothing",
    "malformed_json": "a line of JSONL is no valid JSON, or no object",
    "no_text": "there is no text field, or it is null",
    "text_not_string": "the text field holds something else than a string",
    "empty_text": "the text is empty or white space",
    "too_large": "the record is larger than reading.max_record_bytes",
    "invalid_utf8": "the bytes are no UTF-8, and reading.invalid_utf8 is refuse",
    "binary_file": "a text file holds NUL bytes",
    "html_too_deep": "the page nests so many elements that its extraction would not end",
    "html_unreadable": "the HTML parser gives up",
    "not_html": "the response is no HTML or plain text: an image, a PDF, ...",
    "http_status": "the response is no success: its status is not 2xx",
    "bad_http": "the response's HTTP headers cannot be read",
    "truncated_file": "compressed data or a WARC is cut short; what stands before is read",
    "damaged_file": "the rest of a file cannot be read: compressed data damaged, no valid Parquet or WARC; a check sum "
    "stands at the end, so what was read of the same member or frame may be wrong",
    "unreadable_file": "a file is gone, or may not be read",
}


@dataclass(frozen=True)
class Refusal:
    """A record that becomes no document."""

    reason: str  # one of REASONS
    where: str  # "path: line at byte 1234": enough to find it again
    detail: str
    excerpt: str = ""


class Refused(Exception):
    """Raised inside a reader for one record; becomes a Refusal with the place."""

    def __init__(self, reason: str, detail: str = "", excerpt: str = ""):
        super().__init__(reason, detail, excerpt)
        self.reason, self.detail, self.excerpt = reason, detail, excerpt

    def at(self, where: str) -> Refusal:
        return Refusal(self.reason, where, self.detail, self.excerpt)


def damage(error: Exception, where: str) -> Refusal:
    """The rest of a file that reading has ended in `error`: EOFError where it is cut short."""
    return Refusal("truncated_file" if isinstance(error, EOFError) else "damaged_file", where, str(error))


def excerpt_of(record: bytes | str) -> str:
    if isinstance(record, bytes):
        record = record[: 4 * EXCERPT].decode("utf-8", "replace")
    return record[:EXCERPT]


def decode(data: bytes, reading: ReadingConfig, notes: dict[str, Any]) -> str:
    """UTF-8 as text. Invalid bytes are refused, or replaced by U+FFFD and counted in the notes."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if reading.invalid_utf8 == "refuse":
            raise Refused("invalid_utf8", f"byte {error.start}: {error.reason}", excerpt_of(data)) from None
    text = data.decode("utf-8", "replace")
    notes["replaced_characters"] = text.count("\ufffd") - data.count("\ufffd".encode())
    return text


def check_size(size: int, reading: ReadingConfig) -> None:
    if size > reading.max_record_bytes:
        raise too_large(size, reading)


def too_large(size: int, reading: ReadingConfig) -> Refused:
    return Refused("too_large", f"{size:,} bytes are above {reading.max_record_bytes:,}")


def check_text(text: Any, reading: ReadingConfig, notes: dict[str, Any]) -> str:
    """The text of a document without NULs, which are counted in the notes. Raises Refused."""
    if text is None:
        raise Refused("no_text")
    if not isinstance(text, str):
        raise Refused("text_not_string", f"a {type(text).__name__}", excerpt_of(str(text)))
    if "\0" in text:
        notes["removed_nuls"] = text.count("\0")
        text = text.replace("\0", "")
    if not text or text.isspace():
        raise Refused("empty_text")
    # A character has 4 bytes at most: most texts need not be encoded to be measured.
    if 4 * len(text) > reading.max_record_bytes:
        check_size(len(text.encode()), reading)
    return text
