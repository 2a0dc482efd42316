"""How offensive a document is, by a scorer of your choice, and a limit.

The scorer that comes with this needs no download: a linear model over words (lists/README.md) judges passages of 50
words, and the score is the share of the document's words that stand in passages judged offensive, so that a long
document is not dropped for one quotation.

What it catches is what its training data has, comments on Wikipedia and Twitter in English: insults, obscenities,
slurs, blunt threats. It knows no context: it takes an ass in a stable for the other one, and quotations for speech. It
does not see hatred in polite words, other languages (they pass unscored), or spellings that dodge filters. Words for
groups of people weigh nothing in it. Dolma (Soldaini et al. 2024, arXiv 2402.00159, section 4.1.3) drops by a fastText
classifier trained on Jigsaw's data: give such a file as `scorer`.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from megatron_lite.curation._lists import LinearClassifier
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.fasttext_model import load_model, predict
from megatron_lite.curation.rules.rule import check
from megatron_lite.errors import UsageError

WORDS = Path(__file__).parent / "lists" / "offensive_en.tsv"
FASTTEXT_ENDINGS = (".bin", ".ftz")


@runtime_checkable
class Scorer(Protocol):
    """Scores a text from 0, inoffensive, to 1."""

    name: str

    def score(self, text: str) -> float: ...


@dataclass(frozen=True)
class Toxicity:
    """Notes the score as `toxicity` in the metadata. Documents in other languages pass; without one they are scored.

    `scorer` is "words", the one described above; the path of a fastText model (.bin, .ftz), whose score is the
    probability of `label`; or "package.module:name", a class or function that gives a Scorer when it is called.
    """

    name: ClassVar[str] = "toxicity"
    version: ClassVar[int] = 1

    scorer: str = "words"
    label: str = "toxic"
    languages: tuple[str, ...] | None = ("en",)  # None: all
    max_score: float | None = 0.25

    def __post_init__(self) -> None:
        make_scorer(self.scorer, self.label)

    def __call__(self, document: Document) -> Drop | None:
        if self.languages is not None and document.language and document.language not in self.languages:
            return None
        scorer = make_scorer(self.scorer, self.label)
        score = scorer.score(document.text)
        document.metadata["toxicity"] = round(score, 4)
        if drop := check("toxicity.score", score, most=self.max_score):
            return Drop(drop.rule, f"{drop.detail}, says {scorer.name}")
        return None


class OffensiveWords:
    """The shipped scorer."""

    name = "words"

    def __init__(self, passage_words: int = 50, least_probability: float = 0.5):
        self.passage_words, self.least_probability = passage_words, least_probability
        self._classifier = load_words(WORDS)

    def score(self, text: str) -> float:
        found = self._classifier.judge(text, self.passage_words, self.least_probability)
        return found.flagged_words / max(found.words, 1)


class FastTextScorer:
    """The probability that a fastText model gives a label."""

    def __init__(self, path: str, label: str):
        self.name, self._label, self._model = f"{Path(path).name}, {label}", label, load_model(path)
        if label not in (known := predict(self._model, "", -1)):
            raise UsageError(f"fastText model {path}: no label {label!r}; there are {', '.join(sorted(known)[:20])}")

    def score(self, text: str) -> float:
        return predict(self._model, text, -1)[self._label]


@cache
def make_scorer(scorer: str, label: str) -> Scorer:
    """Raises UsageError for a name that leads to no scorer."""
    if scorer == "words":
        return OffensiveWords()
    if scorer.endswith(FASTTEXT_ENDINGS):
        return FastTextScorer(scorer, label)
    module, _, name = scorer.partition(":")
    if not name:
        raise UsageError(f"scorer {scorer!r}: must be words, a fastText model (.bin, .ftz) or package.module:name")
    try:
        made = getattr(import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"scorer {scorer!r}: {error}") from None
    if not isinstance(made, Scorer):
        raise UsageError(f"scorer {scorer!r}: gives {type(made).__name__}, which has no name and score(text)")
    return made


def load_words(path: Path) -> LinearClassifier:
    """A classifier of a TSV file: "# bias" and a number, then lines of word, weight and idf."""
    first, *rows = path.read_text(encoding="utf-8").splitlines()
    words, weights, idfs = zip(*(row.split("\t") for row in rows), strict=True)
    return LinearClassifier(list(words), [*map(float, weights)], [*map(float, idfs)], float(first.split("\t")[1]))
