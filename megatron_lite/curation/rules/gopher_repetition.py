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


@dataclass(frozen=True)
class GopherRepetition:
    name: ClassVar[str] = "gopher_repetition"

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
            ("duplicate_paragraphs", paragraphs.duplicates / paragraphs.parts),
            ("duplicate_paragraph_characters", paragraphs.duplicate_characters / all_characters),
            ("duplicate_lines", lines.duplicates / lines.parts),
            ("duplicate_line_characters", lines.duplicate_characters / all_characters),
            *((f"top_{n}_gram", characters / all_characters) for n, characters in enumerate(found.top, 2)),
            *((f"duplicate_{n}_grams", characters / all_characters) for n, characters in enumerate(found.duplicate, 5)),
        )
        for measure, share in shares:
            if drop := check(f"gopher_repetition.{measure}", share, most=getattr(self, f"max_{measure}")):
                return drop
        return None
