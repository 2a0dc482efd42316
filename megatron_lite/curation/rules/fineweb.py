"""FineWeb's own rules: Penedo et al. 2024 (arXiv 2406.17557), section 3.6, as datatrove applies them.

The paper's text gives 0.1 for characters in duplicate lines, its appendix and datatrove, which made FineWeb, 0.01: that
is taken. The share of newlines stands in datatrove alone. A line ends in punctuation if its last character does, white
space included; the marks are Unicode's Sentence_Terminal.
"""

from dataclasses import dataclass
from typing import ClassVar

from megatron_lite.curation._text import line_shapes
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import check


@dataclass(frozen=True)
class FineWeb:
    name: ClassVar[str] = "fineweb"
    version: ClassVar[int] = 1

    min_punctuated_lines: float | None = 0.12
    max_short_lines: float | None = 0.67
    short_line_characters: int = 30
    max_duplicate_line_characters: float | None = 0.01
    max_newlines: float | None = 0.3

    def __call__(self, document: Document) -> Drop | None:
        found = line_shapes(document.text, self.short_line_characters)
        if found.lines == 0:
            return Drop("fineweb.empty", "no line holds more than white space")
        duplicates, most_duplicates = found.duplicate_characters / found.characters, self.max_duplicate_line_characters
        return (
            check("fineweb.punctuated_lines", found.punctuated_lines / found.lines, self.min_punctuated_lines)
            or check("fineweb.short_lines", found.short_lines / found.lines, most=self.max_short_lines)
            or check("fineweb.duplicate_line_characters", duplicates, most=most_duplicates)
            or check("fineweb.newlines", found.newlines / found.tokens, most=self.max_newlines)
        )
