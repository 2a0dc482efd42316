"""Which language a document is in, told by fastText's lid.176 from the whole text, and a list of those allowed.

The threshold is RefinedWeb's (Penedo et al. 2023, arXiv 2306.01116, section 3.1.3) and FineWeb's (Penedo et al. 2024,
arXiv 2406.17557, section 3.2): a document whose most probable language has less than 0.65 is dropped. A page without
words gets some language with little probability, and so goes too. Source code is in no language: leave this rule out
there, or give it `min_score: null`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from megatron_lite.curation._lists import FastText
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.fasttext_model import identification_model, language_model
from megatron_lite.curation.rules.rule import CachedProperties, check, check_files


@dataclass(frozen=True)
class Language(CachedProperties):
    """Notes the language (ISO 639-1, or 639-3 where that has none) and `language_score`.

    A language that the reader found is what the document's author said: it goes to metadata as `language_given`.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1

    min_score: float | None = 0.65
    allowed: tuple[str, ...] | None = None  # None: every language
    model: str | None = None  # a fastText model that tells languages; None: lid.176.ftz

    def __post_init__(self) -> None:
        check_files("language.model", [self.model] if self.model else [])

    def __call__(self, document: Document) -> Drop | None:
        probabilities = self._model.predict(document.text)
        language, score = self._model.labels[probabilities.argmax()], float(probabilities.max())
        if document.language and document.language != language:
            document.metadata["language_given"] = document.language
        document.language = language
        document.metadata["language_score"] = round(score, 4)
        if drop := check("language.score", score, self.min_score):
            return Drop(drop.rule, f"{language}: {drop.detail}")
        if self.allowed is not None and language not in self.allowed:
            return Drop("language.allowed", f"{language} ({score:.2f}) is none of {', '.join(self.allowed)}")
        return None

    @cached_property
    def _model(self) -> FastText:
        return language_model(self.model or identification_model())
