"""Gopher's repetition rules: Rae et al. 2021 (arXiv 2112.11446), table A1.

Where implementations differ datatrove is followed: a line, paragraph or n-gram is a duplicate where it stood before in
the text (dolma counts the first occurrence too), duplicate n-grams are taken from left to right without overlap, and
characters are held against the whole text's (dolma: against all n-grams'). N-grams are of tokens, symbols included.
"""

from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation._text import repetition
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import check

MEASURES = (
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    "duplicate_lines",
    "duplicate_line_characters",
    *(f"top_{n}_gram" for n in (2, 3, 4)),
    *(f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10)),
)
CHECKS = tuple((f"gopher_repetition.{measure}", f"max_{measure}") for measure in MEASURES)


@dataclass(frozen=True)
class GopherRepetition:
    name: ClassVar[str] = "gopher_repetition"
    version: ClassVar[int] = 1

    max_duplicate_paragraphs: float | None = 0.30
    max_duplicate_paragraph_characters: float | None = 0.20
    max_duplicate_lines: float | None = 0.30
    max_duplicate_line_characters: float | None = 0.20
    max_top_2_gram: float | None = 0.20
    max_top_3_gram: float | None = 0.18
    max_top_4_gram: float | None = 0.16
    max_duplicate_5_grams: float | None = 0.15
    max_duplicate_6_grams: float | None = 0.14
    max_duplicate_7_grams: float | None = 0.13
    max_duplicate_8_grams: float | None = 0.12
    max_duplicate_9_grams: float | None = 0.11
    max_duplicate_10_grams: float | None = 0.10

    def __call__(self, document: Document) -> Drop | None:
        if not document.text:
            return Drop("gopher_repetition.empty", "no text")
        found = repetition(document.text)
        all_characters, paragraphs, lines = found.characters, found.paragraphs, found.lines
        shares = (
            paragraphs.duplicates / paragraphs.parts,
            paragraphs.duplicate_characters / all_characters,
            lines.duplicates / lines.parts,
            lines.duplicate_characters / all_characters,
            *(characters / all_characters for characters in found.top),
            *(characters / all_characters for characters in found.duplicate),
        )
        for (reason, option), share in zip(CHECKS, shares, strict=True):
            if drop := check(reason, share, most=getattr(self, option)):
                return drop
        return None
