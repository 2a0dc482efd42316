"""SentencePiece as this project uses it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError


class Tokenizer:
    """Text to ids and back.

    A model that tools/train_tokenizer.py trained gives every valid UTF-8 text back as it was, with one exception:
    SentencePiece writes a space as U+2581 inside, so a U+2581 of the text comes back as a space. Text never becomes a
    control token: "</s>" in a document is four characters, not the end of it.
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

    @property
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(self.sha256, self.vocab_size, self.eod_id)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens have none. Raises IndexError for an id outside the vocabulary."""
        return self._processor.decode([int(i) for i in ids])
