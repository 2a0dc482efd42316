"""Gopher's quality rules: Rae et al. 2021 (arXiv 2112.11446), section A.1.1.

Where implementations differ datatrove is followed, which made FineWeb: the mean length of a word (dolma takes the
median), bullets "•" and "-" (dolma "*" and "-"), different stop words (dolma counts each occurrence), and ratios to all
tokens, symbols included. A word is the splitter's; datatrove calls a token a word if it is not all punctuation of its
own list, which lacks "€" and "→" and holds the underscore.
"""

from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation._text import most_stop_words, quality
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import check
from megatron_lite.errors import UsageError

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclass(frozen=True)
class GopherQuality:
    name: ClassVar[str] = "gopher_quality"
    version: ClassVar[int] = 1

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3.0
    max_mean_word_length: float | None = 10.0
    max_hashes: float | None = 0.1
    max_ellipses: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic_words: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: tuple[str, ...] = STOP_WORDS

    def __post_init__(self) -> None:
        if len(self.stop_words) > most_stop_words:
            raise UsageError(f"{len(self.stop_words)} stop words; at most {most_stop_words} can be told apart")

    def __call__(self, document: Document) -> Drop | None:
        found = quality(document.text, self.stop_words)
        tokens, words, lines = max(found.tokens, 1), max(found.words, 1), max(found.lines, 1)
        length = found.word_characters / words
        return (
            check("gopher_quality.words", found.words, self.min_words, self.max_words)
            or check("gopher_quality.mean_word_length", length, self.min_mean_word_length, self.max_mean_word_length)
            or check("gopher_quality.hashes", found.hashes / tokens, most=self.max_hashes)
            or check("gopher_quality.ellipses", found.ellipses / tokens, most=self.max_ellipses)
            or check("gopher_quality.bullet_lines", found.bullet_lines / lines, most=self.max_bullet_lines)
            or check("gopher_quality.ellipsis_lines", found.ellipsis_lines / lines, most=self.max_ellipsis_lines)
            or check("gopher_quality.alphabetic_words", found.alphabetic_words / tokens, self.min_alphabetic_words)
            or check("gopher_quality.stop_words", found.stop_words, self.min_stop_words)
        )
