"""SentencePiece as this project uses it."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from megatron_lite.data.tokenizer import SPACE_MARK, Tokenizer, TokenizerFiles, read_files
from megatron_lite.errors import DataError

AS_IT_STANDS = (
    "  two  spaces, \ufb01\u00bd\uff21\u212b\u00b4e\u0301\u00a0\u3000 \t\n\0 "  # normalization changes most of it
)


class SentencePieceTokenizer(Tokenizer):
    """A model that tools/train_tokenizer.py trained gives every valid UTF-8 text back byte for byte. SentencePiece
    alone would return a space for each U+2581; here that character is spelled in its three bytes, which decode as they
    are. Where the model cannot (`spells_space_mark` is false: no byte pieces, or it adds or strips spaces), the ids are
    SentencePiece's own.
    """

    word_end = re.compile(r"[^ ](?= )")

    def __init__(self, source: str | Path | TokenizerFiles):
        """Raises DataError for a file that is no SentencePiece model, or one without </s>, the end of a document."""
        files = source if isinstance(source, TokenizerFiles) else read_files(source)
        super().__init__(files)
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(files.content[files.main])
        except RuntimeError:
            raise DataError(f"tokenizer {self.path} is no SentencePiece model") from None
        self.vocab_size = self._processor.get_piece_size()
        self.eod_id = self._processor.eos_id()
        if self.eod_id < 0:
            raise DataError(f"tokenizer {self.path} has no </s>, which ends a document")
        self.special_tokens = self._special_tokens()
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        keeps_spaces = self._keeps_spaces()
        self.spells_space_mark = keeps_spaces and self._processor.decode(self._space_mark_ids) == SPACE_MARK
        self._cuts_at_words = keeps_spaces and not self._has_piece_across_words()

    def encode(self, text: str) -> list[int]:
        if SPACE_MARK not in text or not self.spells_space_mark:
            return super().encode(text)
        first, *rest = text.split(SPACE_MARK)
        ids = super().encode(first)
        for part in rest:
            ids += self._space_mark_ids
            ids += super().encode(part)
        return ids

    def encode_block(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def byte_lengths(self) -> np.ndarray:
        model, ids = self._processor, range(self.vocab_size)
        if not any(model.is_byte(token) for token in ids):
            raise DataError(f"tokenizer {self.path} has no byte pieces: its <unk> may stand for any text")
        inside = SPACE_MARK if SPACE_MARK in model.normalize("a b") else " "
        silent = set(self.special_tokens.values())
        return np.array(
            [
                0 if token in silent
                else 1 if model.is_byte(token)
                else len(model.id_to_piece(token).replace(inside, " ").encode())
                for token in ids
            ],
            np.int64,
        )  # fmt: skip

    def is_byte(self, token: int) -> bool:
        """Whether a token spells one byte of what the vocabulary lacks."""
        return self._processor.is_byte(token)

    def _special_tokens(self) -> dict[str, int]:
        """<unk>, <s>, </s>, <pad>, chat, fill-in-the-middle, spare ones."""
        control = self._processor.is_control(list(range(self.vocab_size)))
        special = [i for i in range(self.vocab_size) if control[i] or i == self._processor.unk_id()]
        return dict(zip(self._processor.id_to_piece(special), special, strict=True))

    def _keeps_spaces(self) -> bool:
        """Whether text is encoded as it stands, so that the parts of a text can be encoded one by one."""
        return self._processor.normalize(AS_IT_STANDS) == AS_IT_STANDS.replace(" ", SPACE_MARK)

    def _has_piece_across_words(self) -> bool:
        pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
        return any(SPACE_MARK in piece.lstrip(SPACE_MARK) or " " in piece for piece in pieces)
