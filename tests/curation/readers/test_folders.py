"""Folders: a file is a document, HTML by its ending, and what is no text is named."""

import gzip
import time
from collections import Counter

import pytest
from support.curation_inputs import page, read_all

from megatron_lite.curation.readers import Slice, deal
from megatron_lite.curation.readers.html import nesting


def test_files_become_documents_with_their_paths(tmp_path):
    files = {"a.txt": "text ü", "src/b.py": "print('{}')\n", "c.html": page("A paragraph of a page.").decode()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "d.rst.gz").write_bytes(gzip.compress(b"=====\nTitle\n"))
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbfafter a mark")
    documents, refusals = read_all(tmp_path, "files")
    assert {document.metadata["path"]: document.text for document in documents} == {
        "a.txt": "text ü",
        "src/b.py": "print('{}')\n",
        "c.html": "A paragraph of a page.",
        "d.rst.gz": "=====\nTitle\n",
        "e.txt": "after a mark",
    }
    assert [document.id for document in documents] == [f"s/{number}/0" for number in range(5)] and refusals == []


def test_navigation_is_left_out_and_named_elements_too(tmp_path):
    (tmp_path / "a.html").write_text(
        "<html><body><nav><a href=x>Home</a></nav><div class=note>A note that is in the way of it all.</div>"
        "<main><h1>Title</h1><p>The text of the page.</p><pre>a\n  b</pre></main></body></html>"
    )
    ((document,), _) = read_all(tmp_path, "files", html_skip=[".note"])
    assert document.text == "Title\n\nThe text of the page.\n\na\n  b"


def test_what_is_no_text_is_counted_by_name(tmp_path):
    bad = {
        "latin.txt": (b"caf\xe9 au lait", "invalid_utf8"),
        "picture.txt": (b"\x89PNG\0\0", "binary_file"),
        "utf16.txt": ("text".encode("utf-16"), "binary_file"),
        "empty.txt": (b"", "empty_text"),
        "blank.txt": (b" \n", "empty_text"),
        "large.txt": (b"x" * 2000, "too_large"),
        "bomb.txt.gz": (gzip.compress(b"x" * 10_000_000), "too_large"),
        "cut.txt.gz": (gzip.compress(b"text" * 100)[:20], "truncated_file"),
        "deep.html": (b"<html><body>" + b"<b>" * 500 + b"text", "html_too_deep"),
        "none.html": (b"<html><body></body></html>", "empty_text"),
    }
    for number in range(50):
        for name, (data, _) in bad.items():
            (tmp_path / f"{number}{name}").write_bytes(data)
        (tmp_path / f"{number}.txt").write_bytes(b"good")
    documents, refusals = read_all(tmp_path, "files", reading={"max_record_bytes": 1600})
    assert [document.text for document in documents] == ["good"] * 50
    assert Counter(refusal.reason for refusal in refusals) == Counter(
        reason for _, reason in bad.values() for _ in range(50)
    )


def test_broken_utf8_in_html_is_replaced(tmp_path):
    (tmp_path / "a.html").write_bytes(
        page("before").replace(b"before", b"before \xff after").replace(b"<head>", b"<head><meta charset=utf-8>")
    )
    ((document,), _) = read_all(tmp_path, "files")
    assert document.text == "before \ufffd after"


@pytest.mark.parametrize(
    ("html", "depth"),
    [
        (b"plain", 0),
        (b"<p>a<p>b", 2),  # a bound: two opening tags
        (b"<div><span>a</span></div>", 2),
        (b"<div>" * 1000, 1000),
        (b"<div>" * 1000 + b"</div>" * 1000, 1000),
        (b"</div>" * 500 + b"<div>" * 1000, 1000),
        (b"<p>text<br>" * 1000, 0),  # nothing of this nests
        (b"<ul>" + b"<li>a" * 1000, 1),
        (b"<DIV>" * 1000, 1000),
        (b"1 < 2 " * 1000, 0),
        (b"", 0),
        (b"<", 0),
    ],
)
def test_nesting_is_the_depth_of_open_elements(html, depth):
    assert nesting(html) == depth


def test_a_hostile_page_costs_no_more_than_a_good_one(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<html><body>" + b"".join(b"<p><font size=%d>a" % n for n in range(100_000)))
    started = time.process_time()
    _, (refusal,) = read_all(tmp_path, "files")
    assert refusal.reason == "html_too_deep" and time.process_time() - started < 5


def test_small_files_are_dealt_together_and_the_deal_is_even():
    slices = [Slice(None, size, weight=size) for size in (40, 40, 40, 90, 5, 5, 5, 200, 1)]
    tasks = [[one.weight for one in task] for task in deal(slices, 100)]
    assert tasks == [[40, 40], [40], [90, 5, 5], [5], [200], [1]]
    assert [len(task) for task in deal(slices[:3], 1000, most=2)] == [2, 1]
    assert deal([], 100) == []
