"""Every rule with its threshold and paper: the table that configurations choose from and the documentation shows.

python -m megatron_lite.curation.rules.table        prints it in Markdown
"""

from dataclasses import MISSING, dataclass, fields
from typing import Any

from megatron_lite.curation.rules.bad_words import BadWords
from megatron_lite.curation.rules.boilerplate import BoilerplateLines
from megatron_lite.curation.rules.c4 import C4
from megatron_lite.curation.rules.code import Code
from megatron_lite.curation.rules.decontamination import Decontamination
from megatron_lite.curation.rules.fineweb import FineWeb
from megatron_lite.curation.rules.gopher_quality import GopherQuality
from megatron_lite.curation.rules.gopher_repetition import GopherRepetition
from megatron_lite.curation.rules.language import Language
from megatron_lite.curation.rules.licence import Licence
from megatron_lite.curation.rules.licence_header import LicenceHeader
from megatron_lite.curation.rules.pii import Pii
from megatron_lite.curation.rules.refinedweb import RefinedWebLineRules
from megatron_lite.curation.rules.rule import Rule
from megatron_lite.curation.rules.toxicity import Toxicity
from megatron_lite.curation.rules.urls import Urls

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        GopherQuality,
        GopherRepetition,
        C4,
        FineWeb,
        RefinedWebLineRules,
        BoilerplateLines,
        Code,
        Licence,
        LicenceHeader,
        Language,
        Urls,
        BadWords,
        Toxicity,
        Pii,
        Decontamination,
    )
}


@dataclass(frozen=True)
class Row:
    """One thing that a rule does."""

    rule: str
    reason: str  # as a Drop names it, after the rule and a dot; "(cuts lines)" or "(edits)" where none is dropped
    measure: str
    options: tuple[str, ...]  # the rule's fields that set the threshold
    paper: str

    def threshold(self) -> str:
        defaults = {field.name: field.default for field in fields(RULES[self.rule])}
        return ", ".join(f"{option}: {_show(defaults[option])}" for option in self.options)


GOPHER = "Rae et al. 2021, arXiv 2112.11446"
C4_PAPER = "Raffel et al. 2020, arXiv 1910.10683"
FINEWEB_PAPER = "Penedo et al. 2024, arXiv 2406.17557"
REFINEDWEB_PAPER = "Penedo et al. 2023, arXiv 2306.01116"
STACK_V2 = "Lozhkov et al. 2024, arXiv 2402.19173"
STARCODER = "Li et al. 2023, arXiv 2305.06161"
STACK = "Kocetkov et al. 2022, arXiv 2211.15533"
OPENCODER = "Huang et al. 2024, arXiv 2411.04905"
DOLMA = "Soldaini et al. 2024, arXiv 2402.00159"
GPT3 = "Brown et al. 2020, arXiv 2005.14165"
LLAMA_2 = "Touvron et al. 2023, arXiv 2307.09288"


def _rows(rule: str, paper: str, *rows: tuple[str, str, str]) -> tuple[Row, ...]:
    """Rows of one rule and paper: (reason, measure, options between spaces)."""
    return tuple(Row(rule, reason, measure, tuple(options.split()), paper) for reason, measure, options in rows)


TABLE = (
    *_rows(
        "gopher_quality",
        GOPHER,
        ("words", "words of the document", "min_words max_words"),
        ("mean_word_length", "mean characters of a word", "min_mean_word_length max_mean_word_length"),
        ("hashes", "# to tokens", "max_hashes"),
        ("ellipses", "... and … to tokens", "max_ellipses"),
        ("bullet_lines", "lines that begin with • or -", "max_bullet_lines"),
        ("ellipsis_lines", "lines that end with ... or …", "max_ellipsis_lines"),
        ("alphabetic_words", "words with a letter to tokens", "min_alphabetic_words"),
        ("stop_words", "different stop words", "min_stop_words stop_words"),
    ),
    *_rows(
        "gopher_repetition",
        GOPHER,
        ("empty", "no text", ""),
        ("duplicate_paragraphs", "paragraphs that stood before", "max_duplicate_paragraphs"),
        ("duplicate_paragraph_characters", "characters in them", "max_duplicate_paragraph_characters"),
        ("duplicate_lines", "lines that stood before", "max_duplicate_lines"),
        ("duplicate_line_characters", "characters in them", "max_duplicate_line_characters"),
        *((f"top_{n}_gram", f"characters in the most frequent {n}-gram", f"max_top_{n}_gram") for n in (2, 3, 4)),
        *(
            (f"duplicate_{n}_grams", f"characters in {n}-grams that stood before", f"max_duplicate_{n}_grams")
            for n in (5, 6, 7, 8, 9, 10)
        ),
    ),
    *_rows(
        "c4",
        C4_PAPER,
        ("(cuts lines)", "lines with a long word", "max_word_characters"),
        ("(edits)", "citations as Wikipedia has them", "remove_citations"),
        ("(cuts lines)", "lines that end otherwise", "end_marks"),
        ("(cuts lines)", "lines of fewer words", "min_words_per_line"),
        ("lorem_ipsum", "“lorem ipsum” in a line kept", "drop_lorem_ipsum"),
        ("(cuts lines)", "lines with “javascript”", "cut_javascript"),
        ("braces", "“{” in a line kept; not for code", "drop_braces"),
        ("(cuts lines)", "lines on cookies and policies", "cut_policies"),
        ("sentences", "sentences of the lines kept", "min_sentences"),
    ),
    *_rows(
        "fineweb",
        FINEWEB_PAPER,
        ("empty", "nothing but white space", ""),
        ("punctuated_lines", "lines that end in punctuation", "min_punctuated_lines"),
        ("short_lines", "lines of at most so many characters", "max_short_lines short_line_characters"),
        ("duplicate_line_characters", "characters in lines that stood before", "max_duplicate_line_characters"),
    ),
    *_rows("fineweb", "datatrove", ("newlines", "newlines to tokens", "max_newlines")),
    *_rows(
        "refinedweb",
        REFINEDWEB_PAPER,
        ("(cuts lines)", "lines mainly of capitals (the share: here)", "max_uppercase"),
        ("(cuts lines)", "lines of numbers, of one word, that count", "counters"),
        ("(edits)", "phrases of menus in short lines (which: here)", "short_line_words starts ends anywhere"),
        ("flagged_words", "words in lines cut or edited", "max_flagged_words"),
    ),
    *_rows(
        "boilerplate",
        f"after {C4_PAPER}",
        ("(cuts lines)", "short lines on cookies, policies, JavaScript", "max_words phrases"),
    ),
    *_rows(
        "code",
        STACK_V2,
        ("autogenerated", "a marker in the first lines", "marker_lines generated_markers"),
        ("characters", "characters of the file (JSON, YAML)", "min_characters max_characters"),
        ("lines", "lines of the file", "max_lines"),
        ("mean_line_length", "mean characters of a line (minified)", "max_mean_line_length"),
        ("line_length", "characters of the longest line (minified)", "max_line_length"),
        ("alphabetic", "letters to characters (data)", "min_alphabetic"),
        ("alphanumeric", "letters and digits to characters (data)", "min_alphanumeric"),
        ("encoded_run", "characters of a run of encoded data", "max_encoded_run"),
        ("encoded", "characters of encoded data", "max_encoded"),
        ("hexadecimal", "characters of hexadecimal words (which: here)", "max_hexadecimal"),
    ),
    *_rows("code", STARCODER, ("xml", "an XML declaration in the first 100 characters", "drop_xml")),
    *_rows("licence", STACK, ("allowed", "the licence named in the head", "allowed")),
    *_rows("licence_header", OPENCODER, ("(edits)", "comments at the head on licence, copyright", "max_characters")),
    *_rows(
        "language",
        REFINEDWEB_PAPER,
        ("score", "probability of the likeliest language, of the whole text", "min_score model"),
        ("allowed", "the likeliest language", "allowed"),
    ),
    *_rows(
        "urls",
        REFINEDWEB_PAPER,
        ("blocked", "domains and addresses of lists", "blocked"),
        ("strict", "words in the address, also inside others (which: here)", "strict"),
        ("hard", "whole words in the address (which: here)", "hard"),
        ("soft", "different whole words in the address (which: here)", "max_soft soft"),
    ),
    *_rows(
        "bad_words",
        C4_PAPER,
        ("matches", "entries of the language's list in the text", "max_matches default_language files"),
    ),
    *_rows(
        "toxicity",
        f"after {DOLMA}",
        ("score", "words in passages judged offensive to words (how much: here)", "max_score scorer label languages"),
    ),
    *_rows("pii", f"{DOLMA}; {STARCODER}", ("(edits)", "e-mail, IP, phone, card, IBAN, keys", "kinds")),
    *_rows(
        "decontamination",
        GPT3,
        ("passage", "runs of 13 words of evaluation items, where the action is drop", "table action"),
        ("pieces", "pieces left around such runs and their margins", "max_pieces min_piece margin"),
    ),
    *_rows("decontamination", LLAMA_2, ("share", "words in such runs to words", "max_share")),
)


def markdown() -> str:
    lines = ["| rule | reason | measure | default | source |", "| --- | --- | --- | --- | --- |"]
    for row in TABLE:
        lines.append(f"| {row.rule} | {row.reason} | {row.measure} | {row.threshold()} | {row.paper} |")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if value is MISSING:
        return "needed"
    if isinstance(value, tuple):
        joined = " ".join(value) or "none"
        return joined if len(joined) <= 40 else f"{len(value)} of them"
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    print(markdown())
