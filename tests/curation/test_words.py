"""The defined splitter: the C++ equals the Python reference token for token, and both do what words.py says."""

import importlib.util
import sys
import sysconfig
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.curation import words

TABLE_SCRIPT = Path(words.__file__).parent / "csrc" / "make_word_table.py"
# Characters of every class, dense in what the definition speaks of.
TRICKY = "a_7é'’’'.# \n\t\u00a0\u3000\u200c\u200d\u0301\u0e33\u0e31ก漢字ひカｶ々〇ကខ𠀀𝒜🙂²½\x00\x1c\u200b\ufeff"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("don't stop", ["don't", "stop"]),
        ("don’t", ["don’t"]),
        ("rock'n'roll", ["rock'n", "'", "roll"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("it''s", ["it", "'", "'", "s"]),
        ("x' y", ["x", "'", "y"]),
        ("snake_case, _x 3.14 e-mail", ["snake_case", ",", "_x", "3", ".", "14", "e", "-", "mail"]),
        ("...\t\u2026", [".", ".", ".", "\u2026"]),
        ("漢字とkana", ["漢", "字", "と", "kana"]),
        ("漢'字", ["漢", "'", "字"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("กำลังดี", ["ก", "ำ", "ลั", "ง", "ดี"]),
        ("\u2764\ufe0f", ["\u2764", "\ufe0f"]),
        ("二〇〇八年", ["二", "〇〇", "八", "年"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("a\x1cb\u0085c\u2003d", ["a", "b", "c", "d"]),
        ("a\u200bb", ["a", "\u200b", "b"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_the_definition_on_known_texts(text: str, tokens: list[str]) -> None:
    assert words.split(text) == tokens
    assert words.split_reference(text) == tokens


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(TRICKY), st.text(st.characters(max_codepoint=0x3000))))
def test_cpp_equals_the_reference_on_random_unicode(text: str) -> None:
    assert words.split(text) == words.split_reference(text)


def test_cpp_equals_the_reference_where_classes_begin_and_end() -> None:
    table = words.word_table
    runs = " ".join([table.LETTER, table.DIGIT, table.NUMBER, table.SPACELESS, table.MARK]).split()
    edges = {int(code, 16) + step for run in runs for code in run.split("-") for step in (-1, 0, 1)}
    for code in sorted(edges - set(range(0xD800, 0xE000))):
        c = chr(code)
        text = f"a{c}{c}'{c}b {c}"  # between letters, beside itself and alone, every character shows its class
        assert words.split(text) == words.split_reference(text), f"U+{code:04X}"


def test_cpp_equals_the_reference_on_real_text() -> None:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:30]:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert words.split(text) == words.split_reference(text), path.name


def test_the_pinned_classes_are_those_of_this_pythons_unicode() -> None:
    spec = importlib.util.spec_from_file_location("make_word_table", TABLE_SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    classes = ("letter", "digit", "number", "spaceless", "mark")
    pinned = {}
    for name in classes:
        for run in getattr(words.word_table, name.upper()).split():
            first, _, last = run.partition("-")
            pinned.update(dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), name))
    for code in (*range(0x40000), *range(0xE0000, 0xE1000)):  # between them nothing is assigned
        if unicodedata.category(chr(code)) != "Cn":  # characters of a later Unicode than this Python's
            assert pinned.get(code) == script.class_of(code, unicodedata), f"U+{code:04X}"


def test_white_space_is_what_python_calls_so() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    kept = set("".join(words.split("".join(characters))))
    assert set(characters) - kept == {c for c in characters if c.isspace()}
