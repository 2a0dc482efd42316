"""Our heuristic rules and datatrove's on the same texts: prints verdicts compared, or seconds, as JSON.

python tools/benchmark/judge_beside_datatrove.py verdicts|seconds|shipped TEXTS.json

Run by compare_rules.py in a Python that has datatrove. Words and sentences are this project's on both sides, but with
`shipped` datatrove's are its own (spaCy's). Where verdicts differ, datatrove's differences of definition are taken away
one after the other: the first that brings the verdicts together explains the difference.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document as TheirDocument
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)

from megatron_lite.curation import _text, words
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.c4 import C4
from megatron_lite.curation.rules.fineweb import FineWeb
from megatron_lite.curation.rules.gopher_quality import GopherQuality
from megatron_lite.curation.rules.gopher_repetition import GopherRepetition
from megatron_lite.curation.rules.rule import Rule
from megatron_lite.data.sentences import SentenceSplitter

REASONS = {
    "gopher_short_doc": "gopher_quality.words",
    "gopher_long_doc": "gopher_quality.words",
    "gopher_below_avg_threshold": "gopher_quality.mean_word_length",
    "gopher_above_avg_threshold": "gopher_quality.mean_word_length",
    "gopher_too_many_hashes": "gopher_quality.hashes",
    "gopher_too_many_ellipsis": "gopher_quality.ellipses",
    "gopher_too_many_bullets": "gopher_quality.bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher_quality.ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher_quality.alphabetic_words",
    "gopher_enough_stop_words": "gopher_quality.stop_words",
    "dup_para_frac": "gopher_repetition.duplicate_paragraphs",
    "dup_para_char_frac": "gopher_repetition.duplicate_paragraph_characters",
    "dup_line_frac": "gopher_repetition.duplicate_lines",
    "dup_line_char_frac": "gopher_repetition.duplicate_line_characters",
    **{f"top_{n}_gram": f"gopher_repetition.top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher_repetition.duplicate_{n}_grams" for n in range(5, 11)},
    "lorem_ipsum": "c4.lorem_ipsum",
    "curly_bracket": "c4.braces",
    "too_few_sentences": "c4.sentences",
    "line_punct_ratio": "fineweb.punctuated_lines",
    "short_line_ratio": "fineweb.short_lines",
    "char_dup_ratio": "fineweb.duplicate_line_characters",
    "list_ratio": "fineweb.newlines",
}
Verdict = tuple[str | None, str]  # why a document is dropped, or None and the text that is kept
Judge = Callable[[str], Verdict]

ROUNDS = 3  # in which the two sides take turns


@dataclass(frozen=True)
class Explanation:
    """A difference of definition, and both sides' judges once it is taken away."""

    name: str
    ours: Judge
    theirs: Judge


def our_judge(rule: Rule) -> Judge:
    def judge(text: str) -> Verdict:
        document = Document("x/0/0", text, "x")
        drop = rule(document)
        return (drop.rule, "") if drop else (None, document.text)

    return judge


def their_judge(judging: Any, *patches: tuple[Any, str, Any]) -> Judge:
    """datatrove's filter; `patches` are (module, name, value) that hold while it judges."""

    def judge(text: str) -> Verdict:
        document = TheirDocument(text=text, id="0")
        before = [(module, name, getattr(module, name)) for module, name, _ in patches]
        for module, name, value in patches:
            setattr(module, name, value)
        result = judging.filter(document)
        for module, name, value in before:
            setattr(module, name, value)
        if result is True:
            return None, document.text
        family = "fineweb" if isinstance(judging, FineWebQualityFilter) else "gopher_repetition"
        return (f"{family}.empty" if result[1] == "empty" else REASONS[result[1]]), ""

    return judge


class Symbols:
    """All characters that no word of ours begins with."""

    def __contains__(self, character: str) -> bool:
        return _text.count_words(character) == 0


def duplicate_characters(tokens: list[str], n: int) -> int:
    """datatrove's find_all_duplicate, but "ab c" is not "a bc"."""
    seen, characters, at = set(), 0, 0
    while at + n <= len(tokens):
        gram = tuple(tokens[at : at + n])
        characters += sum(map(len, gram)) if gram in seen else 0
        at += n if gram in seen else 1
        seen.add(gram)
    return characters


def use_our_splitters() -> None:
    """Words are kept for the next filter, as datatrove keeps its own."""
    split, splitter = lru_cache(5)(words.split), SentenceSplitter()
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        module.split_into_words = lambda text, language: split(text)
    c4_filters.split_into_sentences = lambda text, language: splitter.split(text)


@dataclass(frozen=True)
class Comparison:
    ours: Judge
    theirs: Judge
    explanations: tuple[Explanation, ...]


def ends_line(character: str) -> bool:
    return _text.line_shapes(character, 30).punctuated_lines == 1


def comparisons() -> dict[str, Comparison]:
    """In the order in which a chain has them."""
    repetition, quality = GopherRepetitionFilter(), GopherQualityFilter()
    thresholds = {"min_num_sentences": 3, "min_words_per_line": 5}  # those of the code that made C4
    c4, c4_with_citations = C4QualityFilter(**thresholds), C4QualityFilter(**thresholds, remove_citations=False)
    grams = (gopher_repetition_filter, "find_all_duplicate", duplicate_characters)
    symbols = (gopher_quality_filter, "PUNCTUATION_SET", Symbols())
    marks = (c4_filters, "END_PUNCTUATION", (".", "?", "!", '"'))
    line_ends = tuple(c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff" and ends_line(c))
    ours = {rule.name: our_judge(rule) for rule in (GopherRepetition(), GopherQuality(), C4(), FineWeb())}
    return {
        "gopher_repetition": Comparison(
            ours["gopher_repetition"],
            their_judge(repetition),
            (
                Explanation(
                    "theirs compares n-grams without the spaces between words",
                    ours["gopher_repetition"],
                    their_judge(repetition, grams),
                ),
            ),
        ),
        "gopher_quality": Comparison(
            ours["gopher_quality"],
            their_judge(quality),
            (
                Explanation(
                    "theirs calls symbols words that are not on its list, and underscores symbols",
                    ours["gopher_quality"],
                    their_judge(quality, symbols),
                ),
            ),
        ),
        "c4": Comparison(
            ours["c4"],
            their_judge(c4),
            (
                Explanation("theirs lets ' end a line", ours["c4"], their_judge(c4, marks)),
                Explanation(
                    "theirs counts a line's words before citations are gone",
                    our_judge(C4(remove_citations=False)),
                    their_judge(c4_with_citations, marks),
                ),
            ),
        ),
        "fineweb": Comparison(
            ours["fineweb"],
            their_judge(FineWebQualityFilter()),
            (
                Explanation(
                    "theirs lacks sentence ends of younger scripts",
                    ours["fineweb"],
                    their_judge(FineWebQualityFilter(stop_chars=line_ends)),
                ),
            ),
        ),
    }


def compare(texts: Sequence[str], comparison: Comparison) -> dict[str, Any]:
    """Reasons of both sides counted, differences counted by what explains them, and the rest one by one."""
    reasons, explained, unexplained = Counter(), Counter(), []
    for number, text in enumerate(texts):
        ours, theirs = comparison.ours(text), comparison.theirs(text)
        reasons[ours[0] or "kept"] += 1
        if ours == theirs:
            continue
        names = (each.name for each in comparison.explanations if each.ours(text) == each.theirs(text))
        if name := next(names, None):
            explained[name] += 1
        else:
            unexplained.append([number, ours[0], theirs[0]])
    return {"documents": len(texts), "reasons": reasons, "explained": explained, "unexplained": unexplained}


def cpu_seconds(judges: Sequence[Judge], texts: Sequence[str]) -> float:
    """Of the rules one after the other to the first that drops; each judges the text that the one before kept."""
    started = time.process_time()
    for text in texts:
        for judge in judges:
            reason, text = judge(text)
            if reason is not None:
                break
    return time.process_time() - started


def flipped(texts: Sequence[str], comparison: Comparison) -> int:
    """Documents that one side keeps and the other drops."""
    return sum((comparison.ours(text)[0] is None) != (comparison.theirs(text)[0] is None) for text in texts)


def main() -> None:
    mode, path = sys.argv[1:]
    texts = json.loads(Path(path).read_text())
    if mode != "shipped":
        use_our_splitters()
    pairs = comparisons()
    if mode == "verdicts":
        print(json.dumps({name: compare(texts, pair) for name, pair in pairs.items()}))
        return
    for pair in pairs.values():  # what is loaded late is loaded here
        pair.ours("One line of five words. " * 30)
        pair.theirs("One line of five words. " * 30)
    sides = {name: [getattr(pair, name) for pair in pairs.values()] for name in ("ours", "theirs")}
    rounds = [{name: cpu_seconds(judges, texts) for name, judges in sides.items()} for _ in range(ROUNDS)]
    # The least: others on the machine only ever add.
    result: dict[str, Any] = {name: min(seconds[name] for seconds in rounds) for name in sides}
    if mode == "shipped":
        result["flipped"] = {name: flipped(texts, pair) for name, pair in pairs.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
