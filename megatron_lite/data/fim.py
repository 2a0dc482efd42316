"""Fill-in-the-middle: documents with their middle moved to the end, so that a model learns to write what is missing.

Bavarian et al. 2022, "Efficient training of language models to fill in the middle", arXiv 2207.14255. A document's text
is cut at two characters drawn alike into prefix, middle and suffix; its tokens then read (section 3)

    PSM    <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    SPM    <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle

Cutting at characters, not tokens, is the paper's choice (section 4.3): who asks for a middle leaves off inside words.
It is done in a sample, to each document or part of one between ends of documents (the paper's "context level", section
4.2), when the sample is read. So the data on the disk stays plain text, and every epoch cuts anew.
"""

from dataclasses import dataclass

import numpy as np

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
NOTHING = -1  # where a sample has no token left: an id that is no label and embeds as zero
DRAWS = 4  # random numbers a document takes


@dataclass(frozen=True)
class Cut:
    """How a document is rearranged: two places as shares of its length, the first not after the second."""

    begin: float
    end: float
    suffix_first: bool


class FillInTheMiddle:
    """Rearranges `rate` of the documents in a sample, `spm_rate` of these with the suffix first.

    What happens to a document is a function of (seed, stream, epoch, sample, its number in the sample) alone. The
    sample keeps its length: for the tokens that it gains, three a rearranged document, text at its end is dropped, and
    what is rearranged last is shortened before it is cut, so that it is whole. Places left over at the end hold -1.
    """

    def __init__(self, tokenizer: Tokenizer, rate: float, spm_rate: float, seed: int, stream: int):
        """Raises DataError for a tokenizer without the three tokens, or one that cannot encode a text in parts."""
        missing = [name for name in (PREFIX, SUFFIX, MIDDLE) if name not in tokenizer.special_tokens]
        if missing:
            raise DataError(
                f"tokenizer {tokenizer.path} has no {missing[0]}, which fill-in-the-middle needs; one that "
                f"tools/train_tokenizer.py trained has it"
            )
        if not tokenizer.spells_space_mark:
            raise DataError(
                f"tokenizer {tokenizer.path} adds or drops spaces, so that a text cannot be cut for fill-in-the-middle"
            )
        self.tokenizer, self.rate, self.spm_rate = tokenizer, rate, spm_rate
        self.key = np.array([seed, stream], np.uint64)
        self.prefix, self.suffix, self.middle = (tokenizer.special_tokens[name] for name in (PREFIX, SUFFIX, MIDDLE))
        self.special = np.array(sorted(tokenizer.special_tokens.values()))

    def __call__(self, row: np.ndarray, epoch: int, sample: int) -> np.ndarray:
        """The sample int64 [length] with documents rearranged; `row` stays as it is."""
        result = np.full_like(row, NOTHING)
        ends = np.flatnonzero(row == self.tokenizer.eod_id)
        filled = 0
        documents = np.split(row, ends + 1)  # each with its end; the last one without
        for document, cut in zip(documents, self._cuts(epoch, sample, len(documents)), strict=True):
            tokens, whole = self._fitting(document, cut, len(row) - filled)
            result[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            if not whole:
                break
        return result

    def _cuts(self, epoch: int, sample: int, documents: int) -> list[Cut | None]:
        """What to do with each document of a sample: numbers of a cipher, Philox, under the key (seed, stream)."""
        cipher = np.random.Philox(key=self.key, counter=np.array([0, 0, epoch, sample], np.uint64))
        # The 53 bits that a double holds, so that shares are below 1.
        shares = (cipher.random_raw(DRAWS * documents) >> np.uint64(11)) * 2.0**-53
        cuts = []
        for chosen, order, one, other in shares.reshape(documents, DRAWS).tolist():
            cut = Cut(min(one, other), max(one, other), order < self.spm_rate)
            cuts.append(cut if chosen < self.rate else None)
        return cuts

    def _fitting(self, document: np.ndarray, cut: Cut | None, room: int) -> tuple[np.ndarray, bool]:
        """As much of a document, rearranged or not, as there is room for, and whether that is all of it.

        What does not fit is shortened at its end, and cut into three after that.
        """
        kept = document
        while cut is not None and len(kept):
            rearranged = self._rearranged(kept, cut)
            if rearranged is None:
                break
            if len(rearranged) <= room:
                return rearranged, len(kept) == len(document)
            kept = kept[: max(0, len(kept) - (len(rearranged) - room))]
        return document[:room], len(document) <= room

    def _rearranged(self, document: np.ndarray, cut: Cut) -> np.ndarray | None:
        """None for what decodes to no text: special tokens, or half a character where a sample begins or ends."""
        ids = self._text_of(document)
        if len(ids) == 0 or np.isin(ids, self.special).any():
            return None
        text = self.tokenizer.decode(ids.tolist())
        if "\ufffd" in text:
            return None
        begin, end = (int(share * (len(text) + 1)) for share in (cut.begin, cut.end))
        prefix, middle, suffix = map(self.tokenizer.encode, (text[:begin], text[begin:end], text[end:]))
        if cut.suffix_first:
            tokens = [self.prefix, self.suffix, *suffix, self.middle, *prefix, *middle]
        else:
            tokens = [self.prefix, *prefix, self.suffix, *suffix, self.middle, *middle]
        return np.array([*tokens, *document[len(ids) :]], np.int64)

    def _text_of(self, document: np.ndarray) -> np.ndarray:
        """A document without its end."""
        return document[:-1] if len(document) and document[-1] == self.tokenizer.eod_id else document
