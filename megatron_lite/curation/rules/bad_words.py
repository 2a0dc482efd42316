"""C4's list of words that no page may hold: Raffel et al. 2020 (arXiv 1910.10683), section 2.2.

The list is the "List of Dirty, Naughty, Obscene or Otherwise Bad Words" (lists/README.md), in the document's language.
As in the code that made C4 an entry counts, in any case, where no letter, digit or underscore stands beside it, and
anywhere in Japanese, Thai and Chinese, where a few entries that mostly mean something else are left out. A page with
one such word goes: that takes medical pages and texts by and about minorities too (Dodge et al. 2021, arXiv
2104.08758), so a source may allow some, or give lists of its own.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from megatron_lite.curation._lists import PhraseMatcher
from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.rule import check, check_files
from megatron_lite.errors import UsageError

SHIPPED = Path(__file__).parent / "lists" / "ldnoobw"
WITHOUT_SPACES = ("ja", "th", "zh")
NOT_BAD = {"ja": {"sm", "グロ", "女の子"}, "zh": {"性"}}  # as in C4's code
LISTS_OF = {"fr": ("fr", "fr-CA-u-sd-caqc"), "tl": ("fil",), "nb": ("no",), "nn": ("no",)}  # where names differ


@dataclass(frozen=True)
class BadWords:
    """Notes how many there are as `bad_words` in the metadata. A language without a list passes."""

    name: ClassVar[str] = "bad_words"
    version: ClassVar[int] = 1

    max_matches: int | None = 0
    default_language: str = "en"  # of documents that are in no known one
    files: tuple[str, ...] = ()  # lists of your own, one entry a line, for all languages; none: the shipped ones

    def __post_init__(self) -> None:
        check_files("bad_words.files", self.files)

    def __call__(self, document: Document) -> Drop | None:
        language = document.language or self.default_language
        matcher = matcher_of_files(self.files, language) if self.files else matcher_of_language(language)
        if matcher is None:
            return None
        found = matcher.find(document.text)
        if found.count:
            document.metadata["bad_words"] = found.count
        if drop := check("bad_words.matches", found.count, most=self.max_matches):
            return Drop(drop.rule, f"{drop.detail}, the first is {found.first!r} ({language})")
        return None


@cache
def matcher_of_language(language: str) -> PhraseMatcher | None:
    """Of the shipped list, or None."""
    paths = [SHIPPED / f"{name}.txt" for name in LISTS_OF.get(language, (language,))]
    if not all(path.is_file() for path in paths):
        return None
    entries = [entry for path in paths for entry in read_list(path) if entry not in NOT_BAD.get(language, ())]
    return PhraseMatcher(entries, language not in WITHOUT_SPACES)


@cache
def matcher_of_files(files: tuple[str, ...], language: str) -> PhraseMatcher:
    entries = [entry for file in files for entry in read_list(Path(file))]
    return PhraseMatcher(entries, language not in WITHOUT_SPACES)


def read_list(path: Path) -> list[str]:
    """The entries of a list, one a line; lines that begin with # are comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"list {path}: {error}") from None
    return [entry for line in lines if (entry := line.strip()) and not entry.startswith("#")]
