"""A new crawl against an old one: once the old one is scanned, its text is not needed."""

import numpy as np
import pytest
from support.deduplication import deduplicate

from megatron_lite.curation.dedup.exact import Exact
from megatron_lite.curation.dedup.fuzzy import Fuzzy
from megatron_lite.curation.dedup.paragraphs import PARAGRAPHS
from megatron_lite.curation.dedup.substring import Substring

OLD = 2


def crawls():
    """Two shards of an old crawl and two of a new one, which repeats documents, paragraphs and passages of both."""
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(50_000, size=120)) for _ in range(40)]
    texts += [texts[i] for i in range(0, 30, 3)]
    texts += [f"{texts[i]} and little more" for i in range(1, 30, 4)]
    texts += [f"{texts[i]}\n\n{texts[i + 1]}" for i in range(2, 30, 5)]
    texts += [f"some other words {texts[i][:400]}" for i in range(3, 30, 6)]
    order = generator.permutation(len(texts))
    return [[texts[i] for i in part] for part in np.array_split(order, 4)]


@pytest.mark.parametrize("options", [Exact("text"), Exact("words"), Fuzzy("longest"), PARAGRAPHS])
def test_of_an_old_crawl_its_runs_are_enough(tmp_path, options):
    expected = deduplicate(tmp_path / "whole", options, crawls(), old=OLD)
    judged = deduplicate(tmp_path / "runs", options, crawls(), old=OLD, gone=OLD)
    assert judged == expected
    originals = {text for texts in crawls() for text in texts}
    assert any(drop or document.text not in originals for document, drop in judged)


def test_of_an_old_crawls_text_passages_need_the_shards_alone_that_new_ones_repeat(tmp_path):
    generator = np.random.default_rng(1)
    words = [" ".join(f"w{word}" for word in generator.integers(10**6, size=100)) for _ in range(4)]
    # The first says a thing twice itself, but nothing that a new one says.
    shards = [[words[0], words[0]], [words[1]], [words[2], f"{words[1]} new"]]
    judged = deduplicate(tmp_path, Substring(), shards, old=OLD, ranges=2, gone=1)
    assert [document.text for document, _ in judged] == [words[2], "new"]
