"""What C++ measures of a text equals plain Python, on random text dense in what the rules look for and on real text."""

import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.curation import _text
from megatron_lite.curation.rules.c4 import C4, POLICY_PHRASES
from megatron_lite.curation.rules.gopher_quality import STOP_WORDS
from megatron_lite.curation.words import split_reference

PARTS = [
    *("the be to of and that have with The a b ab aa don't x_1 12 3.14 naïve Ünï 漢字 한국 ½ _".split()),
    *(". ? ! ... .... … # ## - • * \" ' 。 ។ ៖ ‥ { } javascript JavaScript lorem Lorem ipsum".split()),
    *("[1] [] [edit] [12".split()),
    *("[citation needed] use cookies. Privacy Policy: java[1]script [١] uses[edit] cookies".split(" ")),
    *("0x4f 4f,a0 \\x4f \\u00e9 \\u00E9 4F 00 ff A== +/".split()),
    *" \n \n\n \t \r\n \r \v \f \x1c \x1e \x85 \u2028 \u2029 \u00a0 \u3000  ".split(" "),
    *([" "] * 12),
]
# str.isalpha knows the Unicode of this Python, the splitter a later one: no unassigned characters.
assigned = st.text(st.characters(exclude_categories=("Cs", "Cn")))
texts = st.one_of(assigned, st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
with_repeats = st.lists(st.sampled_from(["a ", "b ", "c. ", "aa ", "é ", "\n", "\n\n"]), max_size=120).map("".join)


def is_word(token: str) -> bool:
    """Words start with a letter, a digit or an underscore."""
    return token[0].isalnum() or token[0] == "_"


def duplicates(parts: list[str]) -> tuple[int, int, int]:
    counts = Counter(parts)
    repeated = {part: count - 1 for part, count in counts.items()}
    return len(parts), sum(repeated.values()), sum(len(part) * count for part, count in repeated.items())


def top_n_gram(tokens: list[str], n: int) -> int:
    grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if not grams:
        return 0
    most = max(Counter(grams).values())
    return most * len(next(gram for gram in grams if grams.count(gram) == most))


def duplicate_n_grams(tokens: list[str], n: int) -> int:
    seen, characters, i = set(), 0, 0
    while i + n <= len(tokens):
        gram = tuple(tokens[i : i + n])
        if gram in seen:
            characters += len("".join(gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return characters


def check_quality(text: str) -> None:
    tokens, lines = split_reference(text), text.splitlines()
    words = [token for token in tokens if is_word(token)]
    found = _text.quality(text, STOP_WORDS)
    assert found.tokens == len(tokens)
    assert found.words == len(words) == _text.count_words(text)
    assert found.word_characters == sum(map(len, words))
    assert found.alphabetic_words == sum(any(map(str.isalpha, token)) for token in tokens)
    assert found.stop_words == len(set(tokens) & set(STOP_WORDS))
    assert found.hashes == text.count("#")
    assert found.ellipses == text.count("...") + text.count("…")
    assert found.lines == len(lines)
    assert found.bullet_lines == sum(line.lstrip().startswith(("-", "•")) for line in lines)
    assert found.ellipsis_lines == sum(line.rstrip().endswith(("...", "…")) for line in lines)


def check_repetition(text: str) -> None:
    tokens, found = split_reference(text), _text.repetition(text)

    def counts(part: _text.Duplicates) -> tuple[int, int, int]:
        return part.parts, part.duplicates, part.duplicate_characters

    assert found.characters == len(text)
    assert counts(found.paragraphs) == duplicates(re.split(r"\n{2,}", text.strip()))
    assert counts(found.lines) == duplicates(re.split(r"\n+", text))
    assert found.top == [top_n_gram(tokens, n) for n in (2, 3, 4)]
    assert found.duplicate == [duplicate_n_grams(tokens, n) for n in range(5, 11)]


def check_line_shapes(text: str) -> None:
    lines, found = [line for line in text.split("\n") if line.strip()], _text.line_shapes(text, 30)
    assert found.characters == len(text.replace("\n", ""))
    assert found.newlines == text.count("\n")
    assert found.tokens == len(split_reference(text))
    assert found.lines == len(lines)
    assert found.short_lines == sum(len(line) <= 30 for line in lines)
    assert found.duplicate_characters == duplicates(lines)[2]


def c4_by_the_paper(text: str, max_word: int = 1000) -> tuple[str | None, list[str]]:
    """The phrase that drops the document, or the lines kept: the order of C4's code, in plain Python."""
    kept = []
    for line in text.splitlines():
        line = line.strip()
        if any(len(word) > max_word for word in line.split()):
            continue
        line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
        if not line.endswith((".", "?", "!", '"')) or line.endswith("...") or len(line.split()) < 5:
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return "lorem ipsum", []
        if "javascript" in lowered:
            continue
        if "{" in line:
            return "{", []
        if not any(phrase in lowered for phrase in POLICY_PHRASES):
            kept.append(line)
    return None, kept


def check_c4(text: str, max_word: int = 1000) -> None:
    phrase, kept = c4_by_the_paper(text, max_word)
    found = _text.c4_lines(text, C4(max_word_characters=max_word).line_rules)
    assert found.document_phrase == (phrase or "")
    if phrase is None:
        assert found.text == "\n".join(kept)
        assert found.kept == len(kept)
        lines = len(text.splitlines())
        assert found.kept + found.long_word + found.no_end_mark + found.few_words + found.phrase == lines


def check_code(text: str) -> None:
    found, lines = _text.code_shape(text), text.splitlines()
    patterns = (
        r"[a-zA-Z0-9+/\n=]{64,}",
        r"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}",
        r"(?:\\u[0-9a-fA-F]{4}){8,}",
    )
    encoded = [len(match[0]) for pattern in patterns for match in re.finditer(pattern, text)]
    assert found.characters == len(text)
    assert found.letters == sum(map(str.isalpha, text))
    assert found.letters_and_digits == sum(map(str.isalnum, text))
    assert found.lines == len(lines)
    assert found.line_characters == sum(map(len, lines))
    assert found.longest_line == max(map(len, lines), default=0)
    assert found.encoded_characters == sum(encoded)
    hexadecimal = re.compile(r"0[xX][0-9a-fA-F]+|(?=.*[0-9])(?=.*[a-fA-F])[0-9a-fA-F]{8,}")
    assert found.hexadecimal_characters == sum(map(len, filter(hexadecimal.fullmatch, split_reference(text))))
    assert found.longest_encoded == max(encoded, default=0)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_every_count_is_that_of_plain_python(text: str) -> None:
    check_quality(text)
    check_line_shapes(text)
    check_c4(text)
    check_c4(text, max_word=3)
    check_code(text)


@settings(max_examples=300, deadline=None)
@given(st.one_of(texts, with_repeats))
def test_repetition_is_that_of_plain_python(text: str) -> None:
    check_repetition(text)


encoded_text = st.lists(
    st.sampled_from(
        ["4f", "0x4f", "\\x4f", "a0,", "A0 ", "12", "0X", " ", "\n", ",", "g", "4f4f", "\\u00e9", "é", "_", "=="]
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(encoded_text.map("".join))
def test_encoded_data_is_what_the_papers_expressions_match(text: str) -> None:
    check_code(text)
    check_code("Q" * 63 + text + "Zm9v" * 16)


def test_every_count_is_that_of_plain_python_on_real_text() -> None:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in [path for path in paths if path.stat().st_size < 30_000][:25]:
        text = path.read_text(encoding="utf-8", errors="replace")
        check_quality(text)
        check_repetition(text)
        check_line_shapes(text)
        check_c4(text)
        check_code(text)


def test_lines_end_in_punctuation_of_every_script() -> None:
    text = "one.\ntwo!\nthree? \nfour…\n五。\nមួយ។\nпять\nsix\u2029"
    assert _text.line_shapes(text, 30).punctuated_lines == 4  # one. two! 五。 មួយ។


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        _text.quality("a\ud800b", STOP_WORDS)
