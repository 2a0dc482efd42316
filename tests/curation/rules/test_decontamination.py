"""Text of evaluation items is found by 13 words in a row and cut with its margin, or its document dropped."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.curation import _lists
from megatron_lite.curation._text import count_words
from megatron_lite.curation.config import make_rules
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.decontamination import Decontamination, cached_table
from megatron_lite.curation.rules.evaluation_ngrams import build_table, open_table
from megatron_lite.curation.words import split_reference
from megatron_lite.errors import DataError, UsageError

QUESTION = "A farmer who has three fields sows wheat in one of them each spring; how many years pass?"
CHOICES = ["one", "two", "three years, all told"]
SHORT_ITEM = "Which planet of ours has the most moons?"  # 8 words
TOO_SHORT = "What is seven times eight?"


def sentences(count: int, start: int = 0) -> str:
    """Text of no evaluation set, some 40 characters a sentence."""
    return " ".join(f"Sentence number {start + i} tells of thing {(start + i) * 7}." for i in range(count))


@pytest.fixture
def table(tmp_path: Path) -> str:
    harvest = [{"id": 1, "question": TOO_SHORT}, {"id": 2, "question": QUESTION, "choices": CHOICES}]
    (tmp_path / "harvest.jsonl").write_text("".join(json.dumps(item) + "\n" for item in harvest), encoding="utf-8")
    (tmp_path / "planets.txt").write_text(f"{SHORT_ITEM}\n\n", encoding="utf-8")
    path = tmp_path / "evaluation.ngrams"
    built = build_table({"harvest": [tmp_path / "harvest.jsonl"], "planets": [tmp_path / "planets.txt"]}, path)
    assert (built["harvest"].items, built["harvest"].too_short) == (2, 1)
    assert built["harvest"].ngrams == len(words_of("\n".join([QUESTION, *CHOICES]))) - 12
    assert (built["planets"].items, built["planets"].ngrams) == (1, 1)
    return str(path)


def page(text: str) -> Document:
    return Document("web/0/0", text, "web")


def words_of(text: str) -> list[str]:
    return [token for token in split_reference(text.lower()) if re.match(r"\w", token)]


def test_the_passage_goes_with_200_characters_on_either_side(table: str) -> None:
    before, after = sentences(20), sentences(20, 100)
    document = page(f"{before} {QUESTION} {after}")
    assert Decontamination(table)(document) is None
    left, right = document.text.split("\n\n")
    assert before.startswith(left) and after.endswith(right)
    # 200 characters, and the halves of the words that the cuts fall into
    assert 200 <= len(before) + 1 - len(left) < 215
    assert 200 <= len(after) + 2 - len(right) < 215  # the question mark is none of the passage's words
    assert document.metadata["contamination"] == [["harvest", 1, 18]]


def test_case_and_punctuation_do_not_hide_it(table: str) -> None:
    document = page(f"{sentences(20)} «{QUESTION.upper().replace(' ', ', ')}» {sentences(20)}")
    Decontamination(table)(document)
    assert "FARMER" not in document.text and len(document.text) > 500


def test_twelve_words_of_a_long_item_are_not_enough(table: str) -> None:
    twelve = " ".join(QUESTION.split()[:12])
    document = page(f"{sentences(10)} {twelve} {sentences(10)}")
    assert Decontamination(table)(document) is None
    assert twelve in document.text
    assert document.metadata == {}


def test_an_item_of_eight_words_counts_as_a_whole_and_a_shorter_one_not_at_all(table: str) -> None:
    document = page(f"{sentences(20)} {SHORT_ITEM} {TOO_SHORT} {sentences(20)}")
    Decontamination(table, margin=0, min_piece=1)(document)
    assert SHORT_ITEM[:-1] not in document.text
    assert TOO_SHORT in document.text
    assert document.metadata["contamination"] == [["planets", 0, 8]]


def test_drops_name_set_item_and_passage(table: str) -> None:
    text = f"{sentences(20)} {QUESTION} {sentences(20)}"
    where = f"18 words of harvest item 1: {QUESTION[:-1]!r}"
    drop = Decontamination(table, action="drop")(page(text))
    assert (drop.rule, drop.detail) == ("decontamination.passage", where)
    share = 18 / len(words_of(text))
    drop = Decontamination(table, max_share=0.05)(page(text))
    assert (drop.rule, drop.detail) == ("decontamination.share", f"{share:.4g} is above 0.05; {where}")
    drop = Decontamination(table)(page(f"{sentences(4)} {QUESTION}"))
    assert drop.rule == "decontamination.pieces" and drop.detail.startswith("0 of 200 characters are left")


def test_more_than_ten_pieces_drop_the_document(table: str) -> None:
    def text(passages: int) -> str:
        return sentences(30) + "".join(f" {QUESTION} {sentences(30)}" for _ in range(passages))

    assert Decontamination(table)(page(text(9))) is None
    drop = Decontamination(table)(page(text(10)))
    assert drop.rule == "decontamination.pieces" and drop.detail.startswith("11 is above 10; 18 words of harvest")


def test_ngrams_of_more_than_ten_items_are_the_form_of_questions(tmp_path: Path) -> None:
    form = "Please read the passage below with care and then answer the question that follows it"
    path = tmp_path / "set.txt"
    path.write_text(
        "".join(f"{form}: {name} stands alone in item {name}\n" for name in "abcdefghijk"), encoding="utf-8"
    )
    built = build_table({"set": [path]}, tmp_path / "t.ngrams")["set"]
    assert built.common == len(words_of(form)) - 12
    document = page(f"{sentences(20)} {form} {sentences(20)}")
    assert Decontamination(str(tmp_path / "t.ngrams"))(document) is None
    assert form in document.text
    build_table({"set": [path]}, tmp_path / "u.ngrams", most_items=11)
    Decontamination(str(tmp_path / "u.ngrams"))(document)
    assert form not in document.text


def test_n_is_8_to_50(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_text(QUESTION, encoding="utf-8")
    eight = " ".join(QUESTION.split()[3:11])
    for words, found in ((8, True), (9, False)):
        build_table({"set": [path]}, tmp_path / f"{words}.ngrams", words=words)
        assert bool(open_table(tmp_path / f"{words}.ngrams").find(f"x {eight} y").passages) == found
    for words in (7, 51):
        with pytest.raises(UsageError, match=f"n-grams of {words} words: 8 to 50"):
            build_table({"set": [path]}, tmp_path / "no.ngrams", words=words)


WORDS = ["a", "B", "é", "İx", "don't", "漢", "字", "7", "-", ". ", "ß"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=8, max_size=20), min_size=1, max_size=3),
    st.lists(st.sampled_from(WORDS), max_size=60),
    st.integers(0, 2),
)
def test_passages_equal_those_of_a_search_word_by_word(items: list, text: list, planted: int) -> None:
    if planted < len(items):
        text = text[:10] + items[planted] + text[10:]
    joined = " ".join(text)
    n, grams, starts, of_item = 9, [], [], []
    spans = set()
    words = words_of(joined)
    for number, item in enumerate(" ".join(item) for item in items):
        own = words_of(item)
        if len(own) < 8:
            continue
        size = min(n, len(own))
        hashes, count = _lists.ngrams(item, n)
        assert count == len(own) and len(hashes) == len(own) - size + 1
        grams.append(hashes)
        starts.append(_lists.ngram_starts(item, 8)[: len(hashes)])
        of_item.append(np.full(len(hashes), number, np.uint32))
        for j in range(len(own) - size + 1):
            spans |= {
                k
                for i in range(len(words) - size + 1)
                if words[i : i + size] == own[j : j + size]
                for k in range(i, i + size)
            }
    if not grams:
        return
    hashes, first = np.unique(np.concatenate(grams), return_index=True)
    shared = _lists.SharedNGrams(
        hashes, np.concatenate(of_item)[first], _lists.start_filter(np.concatenate(starts)), 8, [8, n]
    )
    found = shared.find(joined)
    assert found.words == len(words)
    assert sum(passage.words for passage in found.passages) == len(spans)
    for passage in found.passages:
        assert len(words_of(joined[passage.begin : passage.end])) == passage.words


def test_the_rule_needs_a_table_and_goes_to_another_process(table: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rules\.web\.decontamination\.table = .*: Field required"):
        make_rules({"decontamination": {}}, "rules.web")
    with pytest.raises(UsageError, match=r"decontamination\.table = .*none: no such file"):
        make_rules({"decontamination": {"table": str(tmp_path / "none")}}, "rules.web")
    (rule,) = make_rules({"decontamination": {"table": table, "action": "drop"}}, "rules.web")
    document = page(f"{sentences(20)} {QUESTION}")
    assert rule(document) == pickle.loads(pickle.dumps(rule))(document) is not None


def test_lower_case_leaves_words_one_to_one() -> None:
    """Passages are found in lower case and cut out of the text as it was."""
    for first in range(0, 0x110000, 64):
        codes = (code for code in range(first, first + 64) if not 0xD800 <= code < 0xE000)
        text = "".join(f"a{chr(code)}b {chr(code)} " for code in codes)
        assert _lists.ngrams(text, 8)[1] == count_words(text), f"U+{first:04X}"


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"a": "b"}\n{"a"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"set\.jsonl line 2: no JSON"):
        build_table({"set": [path]}, tmp_path / "t")
    with pytest.raises(DataError, match=r"none\.txt"):
        build_table({"set": [tmp_path / "none.txt"]}, tmp_path / "t")
    with pytest.raises(DataError, match=r"set\.jsonl: no file of hashes"):
        cached_table(str(path))


def test_a_set_without_items_of_eight_words_makes_a_table_that_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_text("Too short.\n", encoding="utf-8")
    build_table({"set": [path]}, tmp_path / "t")
    document = page(sentences(30))
    assert Decontamination(str(tmp_path / "t"))(document) is None
