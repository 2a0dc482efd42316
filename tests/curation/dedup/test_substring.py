"""A word goes if and only if it lies in a window that an earlier one, clear of it, equals: by two oracles."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.deduplication import deduplicate, dropped, repeated_words, run_stages, write_shards

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup import substring
from megatron_lite.curation.dedup.runs import Range
from megatron_lite.curation.dedup.substring import Substring
from megatron_lite.curation.documents import Document
from megatron_lite.curation.shards import ShardWriter
from megatron_lite.curation.words import split_reference


def repeated_by_comparison(documents, window):
    """The definition, word for word."""
    first, result = {}, []
    for d, tokens in enumerate(documents):
        gone = np.zeros(len(tokens), bool)
        for i in range(len(tokens) - window + 1):
            at, place = first.setdefault(tuple(tokens[i : i + window]), (d, i))
            if at < d or place + window <= i:
                gone[i : i + window] = True
        result.append(gone)
    return result


def kept_tokens(documents, gone):
    return [
        [token for token, out in zip(tokens, mask, strict=True) if not out]
        for tokens, mask in zip(documents, gone, strict=True)
    ]


def check(folder, options, shards, old=0, ranges=3):
    """Against the suffix array; returns the fraction of words removed."""
    documents = [split_reference(text) for texts in shards for text in texts]
    gone = repeated_words(documents, options.window)
    kept = kept_tokens(documents, gone)[sum(map(len, shards[:old])) :]
    gone = gone[sum(map(len, shards[:old])) :]
    counts = Counter()
    judged = deduplicate(folder, options, shards, old, ranges, counts=counts)
    assert [drop is not None for _, drop in judged] == [len(mask) > 0 and bool(mask.all()) for mask in gone]
    ours = [split_reference(document.text) for document, drop in judged if not drop]
    assert ours == [tokens for tokens, mask in zip(kept, gone, strict=True) if not len(mask) or not mask.all()]
    assert counts["words_removed"] == sum(int(mask.sum()) for mask in gone)
    return counts["words_removed"] / sum(map(len, gone))


def random_document(generator, length):
    """Words and symbols as they stand in text: with and without white space between them."""
    vocabulary = ["the", "of", "data", "x", "(", ")", ".", ",", "model_7", "naïve", "漢"]
    ends = generator.choice([" ", " ", " ", "", "\n", "  "], length)
    return "".join(f"{word}{end}" for word, end in zip(generator.choice(vocabulary, length), ends, strict=True))


def plant(generator, documents, passages):
    """Copies of passages of other documents, put at random places with new white space."""
    for _ in range(passages):
        source = split_reference(documents[generator.integers(len(documents))])
        length = int(generator.integers(40, 120))
        begin = int(generator.integers(max(1, len(source) - length)))
        into = generator.integers(len(documents))
        at = int(generator.integers(len(documents[into]) + 1))
        passage = generator.choice([" ", "\n"]).join(source[begin : begin + length])
        documents[into] = f"{documents[into][:at]} {passage} {documents[into][at:]}"


@pytest.mark.parametrize(("seed", "old", "ranges"), [(0, 0, 1), (1, 0, 4), (2, 2, 3)])
def test_planted_passages_are_cut_exactly_where_a_suffix_array_finds_them(tmp_path, seed, old, ranges):
    generator = np.random.default_rng(seed)
    documents = [random_document(generator, int(generator.integers(20, 500))) for _ in range(90)]
    plant(generator, documents, 60)
    shards = [documents[:30], documents[30:31], [], documents[31:60], documents[60:]]
    removed = check(tmp_path, Substring(), shards, old, ranges)
    assert 0.05 < removed < 0.6


TOKENS = st.lists(st.sampled_from("ab("), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(TOKENS, max_size=5), st.integers(1, 6), st.data())
def test_periodic_and_overlapping_text_follows_the_definition(documents, window, data):
    options = Substring(window, data.draw(st.integers(1, window)))
    split = data.draw(st.integers(0, len(documents)))
    shards = [[" ".join(tokens) for tokens in part] for part in (documents[:split], documents[split:])]
    masks = repeated_by_comparison(documents, window)
    if any(documents):
        assert all(map(np.array_equal, masks, repeated_words(documents, window)))  # both oracles agree
    with tempfile.TemporaryDirectory() as folder:
        judged = deduplicate(Path(folder), options, shards, ranges=2)
    for (document, drop), tokens, mask in zip(judged, documents, masks, strict=True):
        assert (drop is not None) == (len(mask) > 0 and bool(mask.all()))
        if drop is None:
            assert split_reference(document.text) == kept_tokens([tokens], [mask])[0]


def test_a_document_of_one_word_keeps_its_first_50(tmp_path):
    ((document, drop),) = deduplicate(tmp_path, Substring(), [["la " * 200]])
    assert drop is None
    assert document.text == "la " * 50


def counting_words(first, count):
    """Words of 8 hexadecimal digits, none of them twice."""
    digits = (np.arange(first, first + count, dtype=np.uint32)[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & 15
    words = np.full((count, 9), ord(" "), np.uint8)
    words[:, :8] = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    return words.tobytes().decode()


def written_by(step, items, folder):
    """The files that step(item, path) writes."""
    folder.mkdir()
    for number, item in enumerate(items):
        step(item, folder / str(number))
    return [folder / str(number) for number in range(len(items))]


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_passage_is_found_again_more_than_4_gib_further_on(tmp_path):
    passage = " ".join(f"passage{i}" for i in range(60))
    per_document, per_shard, shards = 1_000_000, 20, 25
    paths, written = [], 0
    for s in range(shards):
        paths.append(tmp_path / f"{s}.jsonl.zst")
        with ShardWriter(paths[-1]) as writer:
            for r in range(per_shard):
                text = counting_words((s * per_shard + r) * per_document, per_document)
                if (s, r) in ((0, 0), (shards - 1, per_shard - 1)):
                    text = f"{passage} {text}" if s == 0 else f"{text}{passage} {text[:90]}"
                writer.write(Document(f"test/{s}/{r}", text, "test"))
                written += len(text)
    assert written > 1 << 32

    # Of the last stage the first shard and the last: all others stay as they are.
    options, parts, counts = Substring(), [Range(n, 8) for n in range(8)], Counter()
    runs = written_by(lambda path, out: substring.scan(options, path, out), paths, tmp_path / "scan")
    repeats = written_by(lambda p, out: substring.repeat(options, runs, 0, p, out), parts, tmp_path / "repeat")
    keys = written_by(
        lambda n, out: substring.rescan(options, paths[n], n, repeats, out), range(shards), tmp_path / "rescan"
    )
    findings = written_by(lambda p, out: substring.find(options, keys, 0, p, out), parts, tmp_path / "find")
    for number in (0, shards - 1):
        for last, drop in substring.judge(options, paths[number], number, repeats, keys[number], findings, counts):
            assert drop is None
            assert number == 0 or passage not in last.text
    assert counts["words_removed"] == 60
    assert last.text == counting_words((shards * per_shard - 1) * per_document, per_document) + last.text[:90]


def test_49_equal_words_stay_and_50_go(tmp_path):
    common = [f"w{i}" for i in range(50)]
    for length, gone in ((49, 0), (50, 50)):
        shards = [[" ".join(["begin", *common[:length], "end"])], [" ".join(["other", *common[:length], "close"])]]
        counts = Counter()
        judged = deduplicate(tmp_path / str(length), Substring(), shards, counts=counts)
        assert counts["words_removed"] == gone
        assert judged[1][0].text == ("other close" if gone else shards[1][0])


def test_a_document_of_copies_is_dropped_and_one_of_an_old_corpus_wins(tmp_path):
    text = " ".join(f"w{i}" for i in range(80))
    judged = deduplicate(tmp_path, Substring(), [[text, text], [text]], old=1)
    assert dropped(judged) == {"test/1/0": "all 80 words occur earlier"}
    assert [drop.rule for _, drop in judged if drop] == ["substring.empty"]


def test_what_repeats_in_the_old_corpus_alone_is_not_read_again(tmp_path):
    text = " ".join(f"w{i}" for i in range(80))
    other = " ".join(f"v{i}" for i in range(80))
    rows = run_stages(tmp_path, Substring(), write_shards(tmp_path / "s", [[text, text], [other]]), old=1)
    assert [row.counts["keys"] for row in rows["rescan"]] == [0, 0]


@pytest.mark.parametrize(
    ("text", "begins", "expected"),
    [
        ("a b c d e", [1], "a d e"),
        ("a b c d e", [0], "c d e"),
        (" a b c d e ", [3], " a b c "),
        ("a\nb c\n\nd e", [1], "a\n\nd e"),
        ("a\n\nb c\nd e", [1], "a\n\nd e"),
        ("a b c\nd e", [1], "a\nd e"),
        ("foo(b)c", [1], "foo )c"),
        ("foo(b)c", [1, 3], "foo"),
        ("a b c d e", [0, 1, 3], ""),
        ("don't stop - now", [1], "don't now"),
    ],
)
def test_cuts_leave_the_wider_white_space_and_never_join_words(text, begins, expected):
    cut, removed = _dedup.cut(text, 2, np.array(begins, np.uint32))
    assert cut == expected
    assert removed == len({begin + i for begin in begins for i in (0, 1)})


@given(st.lists(st.sampled_from(["a", "b'", "'", "c", " ", "\n", "é", "漢", "\u0301", "("]), min_size=3), st.data())
def test_after_a_cut_the_splitter_finds_the_words_that_were_kept(pieces, data):
    text = "".join(pieces)
    tokens = split_reference(text)
    starts = st.lists(st.integers(0, max(len(tokens) - 2, 0)), unique=True)
    begins = sorted(data.draw(starts)) if len(tokens) > 1 else []
    gone = {begin + i for begin in begins for i in (0, 1)}
    cut, removed = _dedup.cut(text, 2, np.array(begins, np.uint32))
    assert split_reference(cut) == [token for i, token in enumerate(tokens) if i not in gone]
    assert removed == len(gone)


def test_windows_beyond_a_text_or_sizes_that_make_none_are_refused():
    with pytest.raises(IndexError, match="a window of 3 tokens at token 1 of a text of 3"):
        _dedup.cut("a b c", 3, np.array([1], np.uint32))
    with pytest.raises(ValueError, match="begins must be in order"):
        _dedup.cut("a b c", 1, np.array([2, 1], np.uint32))
    for window, anchor in ((0, 0), (3, 4), (3, 0), (2**21, 1)):
        with pytest.raises(ValueError, match=f"window of {window} tokens with an anchor of {anchor}"):
            _dedup.anchors(["a"], window, anchor)
