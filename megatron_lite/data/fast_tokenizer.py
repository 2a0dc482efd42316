"""Our own byte pair encoder in SentencePiece's place: the same ids, many times as fast, and proof of that first.

csrc/bpe.cpp gives the ids of SentencePiece's encoder and remembers words. It reads models like ours: byte pair encoding
with byte fallback, of text as it stands or with a space put before it. Before it is used, `fast_tokenizer` compares the
two on the texts at hand and on ADVERSARIAL ones, and hands SentencePiece back where they differ anywhere.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]  # made when the module is imported
    ModelProto,
    TrainerSpec,
)

from megatron_lite.data import _bpe
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import BLOCK_CHARACTERS, SPACE_MARK, Tokenizer, TokenizerFiles

_RUN = 3000
ADVERSARIAL = (
    "",
    " ",
    "  two  and   three   spaces  ",
    "<s>a</s><unk><pad><|user|><|end|><|fim_prefix|><|reserved_3|><0x0A>",
    "a▁b ▁▁ ▁c",
    "a\0b\0\0 \0",
    "\u0301\u0301a\u0301 \u0301e\u0301é\u0300\u0316",
    "\ufeffa\ufeff\u2028\u2029\u00a0\u3000\u200b\u200d",
    "▅ \u2585\ufffd\ufffe\U0010ffff\U000e0001",
    "tabs\t\tand\r\nlines\r\n\n\n\x0b\x0c\x85end\r",
    "3.14159 1,234,567 0x7fff ١٢٣ １２３ ½ ²",
    "日本語の文章です。한국어 русский עברית ไทย हिन्दी 🙂👩‍👩‍👧🏽",
    "ﬁ Å Å ｶﾞ ① ㌔ Ⅷ",
    "don't \u2019tis co-operate e.g. U.S.A. http://a.b/c?d=e&f#g user@host",
    "def f(x):\n    if x:\n        return {'a': [1, 2]}\n",
    "a" * _RUN,
    " " * _RUN,
    "\n" * _RUN,
    "ab" * _RUN,
    "0" * _RUN,
    "\u0301" * _RUN,
    "▁" * _RUN,
    "🙂" * _RUN,
)


class FastTokenizer(SentencePieceTokenizer):
    """A tokenizer that encodes with csrc/bpe.cpp. Raises ValueError, saying why, for a model that this cannot."""

    def __init__(self, source: str | Path | TokenizerFiles):
        super().__init__(source)
        model = ModelProto.FromString(self.files.content[self.files.main])
        self._put_before = " " if model.normalizer_spec.add_dummy_prefix else ""
        check_kind(model)
        pieces = [
            (piece.piece.replace(SPACE_MARK, " "), piece.score, index)
            for index, piece in enumerate(model.pieces)
            if piece.type == ModelProto.SentencePiece.NORMAL
        ]
        self._encoder = _bpe.Encoder(pieces, [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)])

    def encode_array(self, text: str) -> np.ndarray:
        if SPACE_MARK in text and self.spells_space_mark:
            return np.array(super().encode(text), np.int32)
        if len(text) <= BLOCK_CHARACTERS:
            return self._encode(text)
        return np.concatenate([self._encode(block) for block in self.blocks(text)])

    def encode_block(self, text: str) -> list[int]:
        return self._encode(text).tolist()

    def _encode(self, block: str) -> np.ndarray:
        return self._encoder.encode(self._put_before + block.replace(SPACE_MARK, " ") if block else "")


def check_kind(model: ModelProto) -> None:
    """Raises ValueError, saying why, unless merges by score and bytes are all that the model does."""
    normalizer, kinds = model.normalizer_spec, ModelProto.SentencePiece
    reasons = {
        "it is no byte pair encoding": model.trainer_spec.model_type != TrainerSpec.BPE,
        "it has no byte pieces": not model.trainer_spec.byte_fallback,
        "it puts spaces behind words": model.trainer_spec.treat_whitespace_as_suffix,
        "it normalizes text": normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces,
        "it does not write spaces as U+2581": not normalizer.escape_whitespaces,
        "it has pieces of its user's": any(piece.type in (kinds.USER_DEFINED, kinds.UNUSED) for piece in model.pieces),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(reason)


def fast_tokenizer(path: str, texts: Iterable[str]) -> tuple[Tokenizer, str]:
    """The tokenizer to binarize with, and a line that says which and why."""
    reference = open_tokenizer(path)
    if not isinstance(reference, SentencePieceTokenizer):
        return reference, f"tokenizing with the tokenizers library: {path} is a tokenizer.json"
    try:
        fast = FastTokenizer(reference.files)
    except ValueError as error:
        return reference, f"tokenizing with SentencePiece: the fast encoder cannot read {path}: {error}"
    compared = 0
    for text in (*ADVERSARIAL, *texts):
        if differ(reference, fast, text):
            return reference, f"tokenizing with SentencePiece: the fast encoder gives other ids for {text[:60]!r}"
        compared += 1
    return fast, f"tokenizing with the fast encoder: SentencePiece's ids on {compared} texts"


def differ(reference: Tokenizer, fast: Tokenizer, text: str) -> bool:
    """Whether two tokenizers give other ids for a text; one that fails does."""
    try:
        return fast.encode(text) != reference.encode(text)
    except Exception:
        return True
