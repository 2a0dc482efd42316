"""The bad-word rule says what C4's regular expression says, in the list of the document's language."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.curation import _lists
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.bad_words import SHIPPED, BadWords, read_list
from megatron_lite.errors import UsageError

PHRASES = ["ass", "a_b", "two words", "s&m", "é", "ÄÖ", "🖕", "x", "xy", "日本"]


def document(text: str, language: str | None = None) -> Document:
    return Document("web/0/0", text, "web", language=language)


@pytest.mark.parametrize(
    ("text", "language", "bad"),
    [
        ("The class passed the assessment.", None, False),
        ("What an ass!", None, True),
        ("WHAT AN ASS", "en", True),
        ("ass_1 and ass2", "en", False),
        ("ass-kicking", "en", True),
        ("zwei girls 1 cup", "en", False),
        ("2 girls 1 cup", "en", True),
        ("Er ist ein Arschloch.", "de", True),
        ("Er ist ein Arschloch.", "en", False),
        ("What an ass!", "de", False),
        ("这是强奸案件。", "zh", True),
        ("性能很好。", "zh", False),
        ("グロ", "ja", False),
        ("What an ass!", "sw", False),
        ("osti", "fr", True),
        ("", None, False),
    ],
)
def test_known_verdicts(text: str, language: str | None, bad: bool) -> None:
    page = document(text, language)
    drop = BadWords()(page)
    assert (drop is not None) == bad
    assert ("bad_words" in page.metadata) == bad


def test_a_drop_says_how_many_and_the_first() -> None:
    page = document("An ass is an ass, a dick not.")
    drop = BadWords()(page)
    assert (drop.rule, drop.detail) == ("bad_words.matches", "3 is above 0, the first is 'ass' (en)")
    assert page.metadata["bad_words"] == 3
    assert BadWords(max_matches=3)(page) is None
    assert BadWords(max_matches=None)(page) is None


def test_lists_of_ones_own_take_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# a comment\nFlurb\n\n", encoding="utf-8")
    rule = BadWords(files=(str(path),))
    assert rule(document("What an ass!")) is None
    assert rule(document("a FLURB here", "sw")) is not None
    with pytest.raises(UsageError, match=r"bad_words\.files = .*none\.txt: no such file"):
        BadWords(files=(str(tmp_path / "none.txt"),))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.txt")), ids=lambda path: path.stem)
def test_every_entry_of_a_shipped_list_is_found_alone_and_in_capitals(path: Path) -> None:
    entries = read_list(path)
    matcher = _lists.PhraseMatcher(entries, True)
    for entry in entries:
        assert matcher.find(f"({entry})").count >= 1
        assert matcher.find(f"({entry})").first == entry.lower().replace("i̇", "i")
        assert matcher.find(f" {entry.upper()} ").count >= 1 or entry.upper().lower() != entry.lower()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PHRASES, " ", "_", "-", "q", "Q", "7", "É", "äö", "🙂", "words", "A"]), max_size=8))
def test_it_finds_what_c4s_regular_expression_finds(parts: list[str]) -> None:
    text = "".join(parts)
    alternatives = "|".join(re.escape(phrase.lower()) for phrase in PHRASES)
    whole = re.search(rf"(?:\W|^)({alternatives})(?:\W|$)", text.lower())
    assert (_lists.PhraseMatcher(PHRASES, True).find(text).count > 0) == (whole is not None)
    assert (_lists.PhraseMatcher(PHRASES, False).find(text).count > 0) == (
        re.search(alternatives, text.lower()) is not None
    )


def test_phrases_that_overlap_count_once_the_longest_first() -> None:
    found = _lists.PhraseMatcher(["x", "x y", "y z"], True).find("x y z, y z; x")
    assert (found.count, found.first) == (3, "x y")
