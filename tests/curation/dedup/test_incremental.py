"""A new crawl against an old one: the old runs are kept and joined, and the old text is not needed."""

from collections import Counter

import numpy as np
import pytest
from support.deduplication import deduplicate, write_shards

from megatron_lite.curation.dedup import exact, fuzzy, local, paragraphs, substring
from megatron_lite.curation.dedup.local import Steps

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


def judge_by_exact(steps, options, runs, shards, parts):
    findings = steps.each("find", parts, lambda part, path: exact.find(options, runs, OLD, part, path))
    return [one for n in (2, 3) for one in exact.judge(options, shards[n], n, runs, findings)]


def judge_by_units(steps, options, runs, shards, parts):
    findings = steps.each("find", parts, lambda part, path: paragraphs.find(options, runs, OLD, part, path))
    return [one for n in (2, 3) for one in paragraphs.judge(options, shards[n], n, runs[n], findings, Counter())]


def judge_by_fuzzy(steps, options, runs, shards, parts):
    edges = steps.each("pair", parts, lambda part, path: fuzzy.pair(options, runs, OLD, part, path))
    (members,) = steps.each("cluster", [edges], lambda several, path: fuzzy.cluster(options, runs, several, path))
    descriptions = steps.each(
        "describe", range(4), lambda n, path: fuzzy.describe(options, shards[n], n, runs[n], members, path)
    )
    findings = steps.each("choose", parts, lambda part, path: fuzzy.choose(options, descriptions, OLD, part, path))
    return [one for n in (2, 3) for one in fuzzy.judge(options, shards[n], n, runs, findings)]


@pytest.mark.parametrize(
    ("scan", "judge", "whole", "options"),
    [
        (exact.scan, judge_by_exact, local.deduplicate_exact, exact.Exact("text")),
        (exact.scan, judge_by_exact, local.deduplicate_exact, exact.Exact("words")),
        (fuzzy.scan, judge_by_fuzzy, local.deduplicate_fuzzy, fuzzy.Fuzzy("longest")),
        (paragraphs.scan, judge_by_units, local.deduplicate_units, paragraphs.PARAGRAPHS),
    ],
)
def test_of_an_old_crawl_its_runs_are_enough(tmp_path, scan, judge, whole, options):
    expected = deduplicate(tmp_path / "whole", whole, options, crawls(), old=OLD)
    shards = write_shards(tmp_path, crawls())
    runs = [tmp_path / f"run-{n}" for n in range(4)]
    for n in range(OLD):
        scan(options, shards[n], runs[n])
        shards[n].unlink()
    for n in range(OLD, 4):
        scan(options, shards[n], runs[n])
    steps = Steps(tmp_path, 3)
    judged = judge(steps, options, runs, shards, steps.parts)
    assert judged == expected
    originals = {text for texts in crawls() for text in texts}
    assert any(drop or document.text not in originals for document, drop in judged)


def test_of_an_old_crawls_text_passages_need_the_shards_alone_that_new_ones_repeat(tmp_path):
    generator = np.random.default_rng(1)
    words = [" ".join(f"w{word}" for word in generator.integers(10**6, size=100)) for _ in range(4)]
    shards = write_shards(tmp_path, [[words[0], words[0]], [words[1]], [words[2], f"{words[1]} new"]])
    options, steps = substring.Substring(), Steps(tmp_path, 2)
    runs = steps.each("scan", shards, lambda shard, path: substring.scan(options, shard, path))
    shards[0].unlink()  # says a thing twice itself, but nothing that a new one says
    repeats = steps.each("repeat", steps.parts, lambda part, path: substring.repeat(options, runs, OLD, part, path))
    keys = steps.each("rescan", range(3), lambda n, path: substring.rescan(options, shards[n], n, repeats, path))
    findings = steps.each("find", steps.parts, lambda part, path: substring.find(options, keys, OLD, part, path))
    judged = list(substring.judge(options, shards[2], 2, repeats, keys[2], findings, Counter()))
    assert [document.text for document, _ in judged] == [words[2], "new"]
