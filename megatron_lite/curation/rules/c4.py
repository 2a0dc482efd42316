"""C4's rules: Raffel et al. 2020 (arXiv 1910.10683), section 2.2. Lines that fail are cut, then documents are judged.

The code that made C4 is followed, not the paper's text nor datatrove, which swap the thresholds: a line needs 5 words
(not 3), a document 3 sentences (not 5). Marks that end a line are . ? ! " (datatrove adds '), and words are counted
between white space, after citations are gone (datatrove: before). Sentences are Punkt's, line by line.

The rule for braces takes nearly all code: it belongs to prose alone. FineWeb leaves the end marks out: `end_marks: ""`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from megatron_lite.curation._text import C4Rules, c4_lines
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import CachedProperties, check

if TYPE_CHECKING:
    from megatron_lite.data.sentences import SentenceSplitter

POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


@dataclass(frozen=True)
class C4(CachedProperties):
    name: ClassVar[str] = "c4"
    version: ClassVar[int] = 1

    end_marks: str = '.?!"'
    min_words_per_line: int | None = 5
    max_word_characters: int | None = 1000
    min_sentences: int | None = 3
    drop_lorem_ipsum: bool = True
    drop_braces: bool = True
    cut_javascript: bool = True
    cut_policies: bool = True
    remove_citations: bool = True

    def __call__(self, document: Document) -> Drop | None:
        found = c4_lines(document.text, self.line_rules)
        if found.document_phrase:
            name = "lorem_ipsum" if found.document_phrase == "lorem ipsum" else "braces"
            return Drop(f"c4.{name}", f"a line holds {found.document_phrase!r}")
        if drop := check("c4.sentences", self._count_sentences(found.text), self.min_sentences):
            return drop
        document.text = found.text.strip()
        return None

    @cached_property
    def line_rules(self) -> C4Rules:
        phrases = [  # in the order of C4's code: what a line holds first decides
            ("lorem ipsum", True, self.drop_lorem_ipsum),
            ("javascript", False, self.cut_javascript),
            ("{", True, self.drop_braces),
            *((phrase, False, self.cut_policies) for phrase in POLICY_PHRASES),
        ]
        return C4Rules(
            end_marks=self.end_marks,
            min_words=self.min_words_per_line or 0,
            max_word_characters=self.max_word_characters or 0,
            remove_citations=self.remove_citations,
            phrases=[phrase for phrase, _, wanted in phrases if wanted],
            drops_document=[drops for _, drops, wanted in phrases if wanted],
        )

    @cached_property
    def _splitter(self) -> "SentenceSplitter":
        from megatron_lite.data.sentences import SentenceSplitter  # importing nltk takes a second

        return SentenceSplitter()

    def _count_sentences(self, text: str) -> int:
        """The lines' sentences together, counted as far as it matters."""
        enough = self.min_sentences or 0
        lines = [line for line in text.split("\n") if line]
        if len(lines) >= enough:
            return enough  # a line is at least one sentence
        count = 0
        for line in lines:
            count += self._splitter.count(line, at_most=enough - count)
        return count
