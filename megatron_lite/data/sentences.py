"""Sentences, by Punkt (Kiss and Strunk, "Unsupervised multilingual sentence boundary detection", 2006) as nltk has it.

Punkt learns abbreviations, collocations and the words that start sentences from plain text. punkt_english.json beside
this file was trained on the documentation that tools/fetch_corpus.py fetches; other text is read alike,

    python tools/curate_data.py examples/curation/quickstart.yaml
    python tools/train_sentences.py --input runs/quickstart/curation/corpus/train/*-docs-*.zst --output P.json

and other languages are trained alike; nothing is downloaded.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import orjson
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTrainer

from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish

ENGLISH = Path(__file__).with_name("punkt_english.json")
# What English prose abbreviates before a capital letter, and technical prose hardly ever shows.
ENGLISH_ABBREVIATIONS = (
    "mr mrs ms dr prof rev hon st sr jr gen col lt capt sgt gov sen rep pres inc ltd co corp bros dept univ "
    "e.g i.e cf vs viz al fig figs eq eqs no nos vol vols pp ed eds ch sec approx ca u.s u.k a.m p.m"
).split()
ABBREVIATION = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*")  # letters, with periods between them
MARKUP = re.compile(r"[`<>{}|=\\*_~^@#$%/]")  # characters that prose does without
PROSE_WORDS = 15  # that a paragraph of prose has at least
RARE = 3  # how often a word must stand in the training text for its use of capitals to be kept
BATCH_CHARACTERS = 4_000_000  # of text that training holds as tokens at once, some 500 bytes a word


class SentenceSplitter:
    """Splits text into sentences. Picklable; the parameters are read once."""

    def __init__(self, parameters_file: str | Path = ENGLISH):
        self._punkt = PunktSentenceTokenizer(read_parameters(Path(parameters_file)))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of each sentence, as characters of the text; white space between sentences is in none."""
        return self._punkt.span_tokenize(text)

    def split(self, text: str) -> list[str]:
        return [text[begin:end] for begin, end in self.spans(text)]

    def count(self, text: str, at_most: int) -> int:
        """How many sentences the text has, or `at_most` if it has more: the rest is not looked at."""
        return sum(1 for _ in islice(self.spans(text), at_most))


def train_parameters(texts: Iterable[str], abbreviations: Iterable[str] = ()) -> PunktParameters:
    """What Punkt learns from the prose in texts, and the abbreviations given; a pure function of both."""
    trainer = PunktTrainer()
    for batch in _batches(paragraph for text in texts for paragraph in prose_paragraphs(text)):
        trainer.train(batch, finalize=False)
    trainer.freq_threshold(ortho_thresh=RARE)
    parameters = trainer.get_params()
    learned = filter(ABBREVIATION.fullmatch, parameters.abbrev_types)
    parameters.abbrev_types = {*learned, *abbreviations}
    return parameters


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs made of whole sentences: from code, markup, headings and tables Punkt would learn nonsense."""
    for paragraph in re.split(r"\n\s*\n", text):
        ends_a_sentence = paragraph.rstrip().endswith((".", "?", "!"))
        if ends_a_sentence and not MARKUP.search(paragraph) and len(paragraph.split()) >= PROSE_WORDS:
            yield paragraph.strip()


def write_parameters(parameters: PunktParameters, path: Path) -> None:
    """One JSON object, sorted: the same parameters give the same bytes."""
    record = {
        "abbreviations": sorted(parameters.abbrev_types),
        "collocations": sorted(map(list, parameters.collocations)),
        "sentence_starters": sorted(parameters.sent_starters),
        # Which capitals a word was seen with and where: nltk's flags, 2 to 64.
        "orthography": {word: flags for word, flags in sorted(parameters.ortho_context.items()) if flags},
    }
    partial_path(path).write_bytes(orjson.dumps(record))
    publish(path)


def read_parameters(path: Path) -> PunktParameters:
    """Raises DataError where the file is missing or not one that `write_parameters` wrote."""
    parameters = PunktParameters()
    try:
        record = orjson.loads(path.read_bytes())
        parameters.abbrev_types.update(record["abbreviations"])
        parameters.collocations.update(map(tuple, record["collocations"]))
        parameters.sent_starters.update(record["sentence_starters"])
        parameters.ortho_context.update(record["orthography"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a file of tools/train_sentences.py ({error!r})") from None
    return parameters


def _batches(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs joined by empty lines, as Punkt expects them."""
    batch, characters = [], 0
    for paragraph in paragraphs:
        batch.append(paragraph)
        characters += len(paragraph)
        if characters >= BATCH_CHARACTERS:
            yield "\n\n".join(batch)
            batch, characters = [], 0
    if batch:
        yield "\n\n".join(batch)
