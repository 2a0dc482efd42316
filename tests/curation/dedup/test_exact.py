"""Of equal documents the first by (shard, row) stays, and the dropped ones name it."""

from collections import defaultdict

import numpy as np
import pytest
from support.deduplication import deduplicate, dropped

from megatron_lite.curation.dedup.exact import Exact
from megatron_lite.curation.dedup.urls import normalize_url


def expected_drops(shards, by, key, old=0):
    first, drops = {}, {}
    for s, texts in enumerate(shards):
        for r, text in enumerate(texts):
            kept = first.setdefault(key(text), f"test/{s}/{r}")
            if kept != f"test/{s}/{r}" and s >= old:
                drops[f"test/{s}/{r}"] = f"same {by} as {kept}"
    return drops


def random_shards(seed):
    generator = np.random.default_rng(seed)
    texts = [f"Text  number {i % 37}." if i % 2 else f"text number {i % 37}" for i in range(60)]
    return [list(generator.choice(texts, size)) for size in (40, 0, 25, 60)]


@pytest.mark.parametrize("ranges", [1, 5])
@pytest.mark.parametrize("old", [0, 2])
def test_the_first_of_equal_texts_stays_whatever_the_ranges_and_an_old_corpus_wins(tmp_path, ranges, old):
    shards = random_shards(ranges)
    judged = deduplicate(tmp_path, Exact("text"), shards, old, ranges)
    assert [document.text for document, _ in judged] == [text for texts in shards[old:] for text in texts]
    assert dropped(judged) == expected_drops(shards, "text", str, old)


def test_by_words_spacing_case_and_punctuation_make_no_difference(tmp_path):
    shards = random_shards(3)
    judged = deduplicate(tmp_path, Exact("words"), shards)
    assert dropped(judged) == expected_drops(shards, "words", lambda text: tuple(text.lower().rstrip(".").split()))


def test_by_url_one_page_stays_and_documents_without_a_url_take_no_part(tmp_path):
    urls = [["http://a.org/x", None, ""], [None, "https://www.A.org/x/", "http://a.org/y"], []]
    shards = [["one", "two", "two"], ["two", "three", "one"], []]
    judged = deduplicate(tmp_path, Exact("url"), shards, urls=urls)
    assert dropped(judged) == {"test/1/1": "same url as test/0/0"}
    assert [drop.rule for _, drop in judged if drop] == ["exact.url"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org", "https://www.Example.org/"),
        ("http://example.org:80/a", "https://example.org.:443/a/"),
        ("https://example.org/a#part", "https://example.org/a"),
        ("https://example.org/a?utm_source=x&b=1&fbclid=2", "https://example.org/a?b=1"),
        ("https://example.org/a?gclid=2", "https://example.org/a"),
        ("https://example.org/%7euser/%c3%a9", "https://example.org/~user/é"),
        (" https://example.org/a b ", "https://example.org/a%20b"),
    ],
)
def test_urls_of_one_page_have_one_form(one, other):
    assert normalize_url(one) == normalize_url(other)


def test_urls_of_different_pages_keep_different_forms():
    urls = [
        "https://example.org/a",
        "https://example.org/A",
        "https://example.org:8080/a",
        "https://other.example.org/a",
        "https://example.org/a?b=1&c=2",
        "https://example.org/a?c=2&b=1",
        "https://example.org/a%2Fb",
        "https://example.org/a/b",
        "ftp://example.org/a",
        "https://[bad/a",
        "https://example.org:port/a",
        "no address",
    ]
    forms = defaultdict(list)
    for url in urls:
        forms[normalize_url(url)].append(url)
    assert all(len(same) == 1 for same in forms.values()), forms
