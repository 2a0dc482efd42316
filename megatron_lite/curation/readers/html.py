"""The text of web pages: bytes to characters as browsers do it, then the main content by resiliparse."""

import re

import numpy as np
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

from megatron_lite.curation.readers.refusals import Refused

# Extraction takes time in the square of the nesting, and memory too where formatting elements stay open; a page by a
# hostile or broken program could hold up a worker for hours. Pages made for people nest some dozens deep.
MAX_DEPTH = 400

_TAG = re.compile(rb"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
# Elements without content, and those that the next of their kind or the end of a block closes by itself.
_DO_NOT_NEST = frozenset(
    b"area base br col embed hr img input link meta param source track wbr p li dd dt td th tr option optgroup "
    b"tbody thead tfoot colgroup rt rp html head body".split()
)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{2,40})""", re.IGNORECASE)
_META_WITHIN = 4096  # bytes; the standard asks for the first 1024, and pages forget


def decode_html(page: bytes, declared: str | None) -> str:
    """A page's characters, by its byte order mark, the server's charset, its meta element, or a guess, in this order.

    Bytes that the encoding does not have become U+FFFD.
    """
    if page.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        declared = None  # the mark is found below
    elif not declared and (found := _CHARSET.search(page[:_META_WITHIN])):
        declared = found[1].decode("ascii")
    known = map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
    # No other encoding is tried where one byte does not fit: that would turn every other letter into two.
    return bytes_to_str(page, known or detect_encoding(page) or "utf-8", errors="replace", fallback_encodings=())


def extract(page: str, skip: tuple[str, ...] = ()) -> str:
    """A page's main content as text: its lists, tables and code laid out, without the navigation around it.

    `skip` are CSS selectors of elements to leave out. Raises Refused.
    """
    if nesting(page.encode("utf-8", "replace")) > MAX_DEPTH:
        raise Refused("html_too_deep", f"elements are nested more than {MAX_DEPTH} deep")
    return extract_plain_text(page, main_content=True, skip_elements=list(skip) or None)


def nesting(page: bytes) -> int:
    """How deep elements nest at most: exact enough to tell dozens from thousands."""
    # Opening tags less closing ones, void ones included, is fast to bound; most pages stay below it.
    data = np.frombuffer(page, np.uint8)
    behind = data[np.flatnonzero(data[:-1] == ord("<")) + 1]
    depth = _deepest(np.where(behind == ord("/"), -1, (behind | 32) - ord("a") < 26).astype(np.int64))
    if depth <= MAX_DEPTH:
        return depth
    tags = [-1 if closing else 1 for closing, name in _TAG.findall(page) if name.lower() not in _DO_NOT_NEST]
    return _deepest(np.array(tags, np.int64))


def _deepest(steps: np.ndarray) -> int:
    """The most that a running sum rises above an earlier value: a closing tag with nothing to close does not count."""
    depths = np.cumsum(np.concatenate([[0], steps]))
    return int((depths - np.minimum.accumulate(depths)).max())
