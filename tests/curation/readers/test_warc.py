"""WARC and WET: pages' text with their URLs, and what is no page named."""

import gzip
import zlib
from collections import Counter

import pytest
import zstandard
from support.curation_inputs import members, page, read_all, warc_record

PARAGRAPHS = [
    f"This is paragraph number {number} of a page about gardens and the people in them." for number in range(40)
]
RECORDS = [warc_record(page(text), f"http://e/{number}") for number, text in enumerate(PARAGRAPHS)]
REQUEST = warc_record(b"", "http://e/0", "request", "GET / HTTP/1.1\r\n")


def read(tmp_path, data: bytes, name: str = "a.warc.gz", **options):
    (tmp_path / name).write_bytes(data)
    return read_all(tmp_path / name, "warc", **options)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.warc", b"".join(RECORDS)),
        ("a.warc.gz", members(RECORDS)),
        ("b.warc.gz", gzip.compress(b"".join(RECORDS))),
        ("a.warc.zst", b"".join(zstandard.compress(record) for record in RECORDS)),
    ],
)
def test_pages_become_documents_with_their_urls_and_dates(tmp_path, name, data):
    documents, refusals = read(tmp_path, data, name)
    assert [document.text for document in documents] == PARAGRAPHS and refusals == []
    assert [(document.id, document.url) for document in documents[:2]] == [
        ("s/0/0", "http://e/0"),
        ("s/0/1", "http://e/1"),
    ]
    assert documents[0].metadata == {"date": "2024-05-06T07:08:09Z"}


def test_requests_and_metadata_are_no_documents(tmp_path):
    info = warc_record(b"software: x", "", "warcinfo", None)
    metadata = warc_record(b"fetchTimeMs: 3", "http://e/0", "metadata", None)
    documents, refusals = read(tmp_path, members([info, REQUEST, RECORDS[0], metadata, RECORDS[1]]))
    assert [document.text for document in documents] == PARAGRAPHS[:2] and refusals == []


def test_wet_texts_come_as_they_are_with_their_language(tmp_path):
    more = "WARC-Identified-Content-Language: deu\r\n"
    record = warc_record("Grüße\naus Köln".encode(), "http://k/", "conversion", None, more)
    (document,), refusals = read(tmp_path, members([record]), "a.warc.wet.gz")
    assert (document.text, document.url, document.language) == ("Grüße\naus Köln", "http://k/", "deu")
    assert refusals == []


def http(status: str = "200 OK", kind: str = "text/html", more: str = "") -> str:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}"


ENCODED = [
    (http(kind="text/html; charset=iso-8859-1"), page("Straße und Café am Fluß").decode().encode("latin-1")),
    (http(), page("Straße und Café am Fluß").replace(b"<head>", b"<head><meta charset=utf-8>")),
    (http(), b"\xff\xfe" + page("Straße und Café am Fluß").decode().encode("utf-16-le")),
    (http(more="Content-Encoding: gzip\r\n"), gzip.compress(page("Straße und Café am Fluß"))),
    (http(more="Content-Encoding: deflate\r\n"), zlib.compress(page("Straße und Café am Fluß"))),
    (
        http(more="Transfer-Encoding: chunked\r\n"),
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(page("Straße und Café am Fluß")), page("Straße und Café am Fluß")),
    ),
    (http(kind="text/plain; charset=utf-8"), "Straße und Café am Fluß".encode()),
]


@pytest.mark.parametrize(("head", "payload"), ENCODED)
def test_a_page_is_decoded_as_its_server_and_itself_say(tmp_path, head, payload):
    (document,), refusals = read(tmp_path, members([warc_record(payload, http=head)]))
    assert document.text.strip() == "Straße und Café am Fluß" and refusals == []


BAD = [
    (warc_record(page("gone"), http=http("404 Not Found")), "http_status"),
    (warc_record(b"%PDF-1.4", http=http(kind="application/pdf")), "not_html"),
    (warc_record(b"", http=http()), "empty_text"),
    (warc_record(page("x" * 100_000), http=http()), "too_large"),
    (warc_record(gzip.compress(page("x" * 10_000_000)), http=http(more="Content-Encoding: gzip\r\n")), "too_large"),
    (warc_record(page("a"), http="no HTTP at all"), "bad_http"),
    (warc_record(b"<div>" * 5000 + b"deep", http=http()), "html_too_deep"),
]


def test_what_is_no_page_is_counted_by_name_and_costs_no_good_one(tmp_path):
    records = [one for number in range(200) for one in (BAD[number % len(BAD)][0], RECORDS[number % 40])]
    documents, refusals = read(tmp_path, members(records), reading={"max_record_bytes": 50_000})
    assert [document.text for document in documents] == [PARAGRAPHS[number % 40] for number in range(200)]
    assert Counter(refusal.reason for refusal in refusals) == Counter(
        BAD[number % len(BAD)][1] for number in range(200)
    )


def test_a_refusal_says_which_record_it_was(tmp_path):
    _, (refusal,) = read(tmp_path, members([RECORDS[0], BAD[0][0]]))
    start = len(gzip.compress(RECORDS[0]))
    assert refusal.where == f"{tmp_path}/a.warc.gz: record 1 at byte {start}, http://example.org/"
    assert refusal.detail == "404"


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_record_that_the_files_end_cuts_short_is_refused_and_those_before_are_read(tmp_path, name):
    records = [*RECORDS[:5], warc_record(page("a last page " * 1000), "http://e/last")]
    data = members(records) if name.endswith("gz") else b"".join(records)
    documents, (refusal,) = read(tmp_path, data[:-60], name)
    assert [document.text for document in documents] == PARAGRAPHS[:5]
    assert refusal.reason == "truncated_file" and "from record 5 on" in refusal.where


def test_a_damaged_file_is_named_and_read_up_to_the_damage(tmp_path):
    packed = [gzip.compress(record) for record in RECORDS]
    documents, (refusal,) = read(tmp_path, b"".join([*packed[:7], b"not gzip at all " * 20, *packed[7:]]))
    assert [document.text for document in documents] == PARAGRAPHS[:7]
    assert (refusal.reason, refusal.where) == ("damaged_file", f"{tmp_path}/a.warc.gz: from record 7 on")


def test_a_file_that_is_no_warc_is_named(tmp_path):
    documents, (refusal,) = read(tmp_path, b"hello\n" * 1000, "a.warc")
    assert documents == [] and refusal.reason == "damaged_file"
