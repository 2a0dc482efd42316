"""The splitter: what a word is, here and everywhere in curation.

Papers state thresholds over "words" and leave open what a word is, though that decides more than the thresholds do. A
token is a word or a symbol:

    word    a run of letters, digits and underscores that starts with one of them and goes on over marks (accents,
            vowel signs) and joiners; between two such runs one apostrophe, ' or U+2019: "don't" is one word
    word    each character of a script written without spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar),
            with the marks that follow it
    symbol  every other character that is not white space, by itself

The classes are Unicode general categories (letters L, digits and numbers N, marks M and the joiners U+200C and U+200D),
pinned in word_table.py to one version of Unicode; white space is what str.isspace() says. Where a published rule counts
punctuation among its words, as datatrove's word tokenizers do, its words are all tokens.

`split` is C++ (csrc/words.h), `split_reference` says the same in Python, token for token.
"""

import re
from functools import cache

from megatron_lite.curation import word_table
from megatron_lite.curation._text import split

__all__ = ["split", "split_reference"]


@cache
def token_pattern() -> re.Pattern[str]:
    first = _set(word_table.LETTER) + _set(word_table.DIGIT) + _set(word_table.NUMBER) + "_"
    mark, spaceless = _set(word_table.MARK), _set(word_table.SPACELESS)
    run = f"[{first}][{first}{mark}]*"
    return re.compile(f"{run}(?:['\u2019]{run})?|[{spaceless}][{mark}]*|\\S")


def split_reference(text: str) -> list[str]:
    """The tokens of a text, in order."""
    return token_pattern().findall(text)


def _set(runs: str) -> str:
    """Runs of word_table as the inside of a regular expression's [...]."""
    ends = (run.partition("-") for run in runs.split())
    return "".join(f"{chr(int(first, 16))}-{chr(int(last or first, 16))}" for first, _, last in ends)
