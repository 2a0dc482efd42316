"""SentencePiece as this project uses it."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space inside, and decodes as one
BLOCK_CHARACTERS = 1 << 16  # tokenized at once where the model allows it
LONGEST_BLOCK = 1 << 24  # characters; SentencePiece takes some 50 bytes of memory for each
AS_IT_STANDS = (
    "  two  spaces, \ufb01\u00bd\uff21\u212b\u00b4e\u0301\u00a0\u3000 \t\n\0 "  # normalization changes most of it
)
WORD_END = re.compile(r"[^ ](?= )")


class Tokenizer:
    """Text to ids and back.

    A model that tools/train_tokenizer.py trained gives every valid UTF-8 text back byte for byte. SentencePiece alone
    would return a space for each U+2581; here that character is spelled in its three bytes, which decode as they are.
    Where the model cannot (`spells_space_mark` is false: no byte pieces, or it adds or strips spaces), the ids are
    SentencePiece's own. Text never becomes a control token: "</s>" in a document is four characters, not the end of it.
    """

    def __init__(self, path: str | Path):
        """Raises DataError for a file that is no SentencePiece model, or one without </s>, the end of a document."""
        self.path = str(path)
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path}: {error.strerror}") from None
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise DataError(f"tokenizer {path} is no SentencePiece model") from None
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._processor.get_piece_size()
        self.eod_id = self._processor.eos_id()
        if self.eod_id < 0:
            raise DataError(f"tokenizer {path} has no </s>, which ends a document")
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        keeps_spaces = self._keeps_spaces()
        self.spells_space_mark = keeps_spaces and self._processor.decode(self._space_mark_ids) == SPACE_MARK
        self._cuts_at_words = keeps_spaces and not self._has_piece_across_words()

    @property
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(self.sha256, self.vocab_size, self.eod_id, self.special_tokens)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the pieces that no text gives: <unk>, <s>, </s>, <pad>, chat, fill-in-the-middle, spare ones."""
        control = self._processor.is_control(list(range(self.vocab_size)))
        special = [i for i in range(self.vocab_size) if control[i] or i == self._processor.unk_id()]
        return dict(zip(self._processor.id_to_piece(special), special, strict=True))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError for more than LONGEST_BLOCK characters with no place to cut them."""
        if SPACE_MARK not in text or not self.spells_space_mark:
            return self._encode_part(text)
        first, *rest = text.split(SPACE_MARK)
        ids = self._encode_part(first)
        for part in rest:
            ids += self._space_mark_ids
            ids += self._encode_part(part)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids, int32 [tokens]."""
        return np.array(self.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens have none. Raises IndexError for an id outside the vocabulary."""
        return self._processor.decode([int(i) for i in ids])

    def is_byte(self, token: int) -> bool:
        """Whether a token spells one byte of what the vocabulary lacks."""
        return self._processor.is_byte(token)

    def _encode_part(self, text: str) -> list[int]:
        ids = []
        for block in self._blocks(text):
            ids += self._processor.encode(block)
        return ids

    def _blocks(self, text: str) -> Iterator[str]:
        """Memory and time grow faster than a text, so a long one is tokenized in blocks, with the same ids.

        No piece reaches from a word into the space behind it, so no merge does, and the words' ids are independent.
        """
        if len(text) <= BLOCK_CHARACTERS:
            yield text
            return
        begin = 0
        while begin < len(text):
            word = WORD_END.search(text, begin + BLOCK_CHARACTERS - 1) if self._cuts_at_words else None
            end = word.end() if word else len(text)
            if end - begin > LONGEST_BLOCK:
                raise ValueError(
                    f"{end - begin} characters with no space to cut them at; at most {LONGEST_BLOCK} are tokenized"
                )
            yield text[begin:end]
            begin = end

    def _keeps_spaces(self) -> bool:
        """Whether text is encoded as it stands, so that the parts of a text can be encoded one by one."""
        return self._processor.normalize(AS_IT_STANDS) == AS_IT_STANDS.replace(" ", SPACE_MARK)

    def _has_piece_across_words(self) -> bool:
        pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
        return any(SPACE_MARK in piece.lstrip(SPACE_MARK) or " " in piece for piece in pieces)
