"""Text that stands in evaluation sets too, cut or dropped: Brown et al. 2020 (arXiv 2005.14165), appendix C.

A passage is contaminated where 13 words in a row, in lower case and without punctuation, are those of an evaluation
item, or all words of an item that has 8 to 12. As for GPT-3 the passage goes with 200 characters on either side,
pieces of fewer than 200 characters go, and a document that would fall into more than 10 pieces is dropped. GPT-3's
pieces became documents; here they stay one, a blank line between them, so that a document keeps its number. Llama 2
(Touvron et al. 2023, arXiv 2307.09288, appendix A.6) judges by the share of words: `max_share`.

    build_table({"arc": ["arc/test.jsonl"]}, "evaluation.ngrams")

makes the table of the evaluation sets once; every process maps it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from megatron_lite.curation.documents import Document, Drop
from megatron_lite.curation.rules.evaluation_ngrams import Table, open_table
from megatron_lite.curation.rules.rule import check, check_files

MOST_NOTED = 10  # items in a document's metadata
CUT_WORD = re.compile(r"\w\w")
WORD_AT_BEGIN, WORD_AT_END = re.compile(r"^\w{1,40}"), re.compile(r"\w{1,40}$")  # scripts without spaces lose 40


@dataclass(frozen=True)
class Decontamination:
    """Notes `contamination` in the metadata: sets, items and words, of the first passages."""

    name: ClassVar[str] = "decontamination"
    version: ClassVar[int] = 1

    table: str
    action: Literal["cut", "drop"] = "cut"
    margin: int = 200  # characters cut on either side
    min_piece: int = 200  # characters
    max_pieces: int | None = 10
    max_share: float | None = None  # of the document's words that are contaminated

    def __post_init__(self) -> None:
        check_files("decontamination.table", [self.table])

    def __call__(self, document: Document) -> Drop | None:
        table = cached_table(self.table)
        found = table.find(document.text)
        if not found.passages:
            return None
        names = [(*table.name_of(passage.item), passage.words) for passage in found.passages]
        document.metadata["contamination"] = [list(name) for name in names[:MOST_NOTED]]
        set_name, number, words = names[0]
        first = found.passages[0]
        where = f"{words} words of {set_name} item {number}: {_short(document.text[first.begin : first.end])}"
        if self.action == "drop":
            return Drop("decontamination.passage", where)
        share = sum(passage.words for passage in found.passages) / found.words
        if drop := check("decontamination.share", share, most=self.max_share):
            return Drop(drop.rule, f"{drop.detail}; {where}")
        pieces = self._pieces(document.text, [(passage.begin, passage.end) for passage in found.passages])
        if drop := check("decontamination.pieces", len(pieces), most=self.max_pieces):
            return Drop(drop.rule, f"{drop.detail}; {where}")
        kept = [piece for piece in pieces if len(piece) >= self.min_piece]
        if not kept:
            return Drop("decontamination.pieces", f"0 of {self.min_piece} characters are left; {where}")
        document.text = "\n\n".join(kept)
        return None

    def _pieces(self, text: str, passages: Sequence[tuple[int, int]]) -> list[str]:
        """What is left between passages and their margins: no halves of words, no empty ones."""
        pieces, begin = [], 0
        for first, end in passages:
            if first - self.margin > begin:
                pieces.append((begin, first - self.margin))
            begin = max(begin, end + self.margin)
        pieces.append((begin, len(text)))
        return [piece for begin, end in pieces if (piece := _whole_words(text, begin, end).strip())]


def _whole_words(text: str, begin: int, end: int) -> str:
    """The slice without the half of a word at either end where it cuts one."""
    piece = text[begin:end]
    if begin > 0 and CUT_WORD.match(text[begin - 1 : begin + 1]):
        piece = WORD_AT_BEGIN.sub("", piece)
    if CUT_WORD.match(text[end - 1 : end + 1]):
        piece = WORD_AT_END.sub("", piece)
    return piece


@cache
def cached_table(path: str) -> Table:
    return open_table(path)


def _short(passage: str) -> str:
    words = " ".join(passage.split())
    return repr(words if len(words) <= 100 else words[:97] + "...")
