"""The SentencePiece model that a GGUF file's metadata came from, where its tokenizer is of llama.cpp's kind `llama`.

The metadata have every piece with its score and its kind, numbered as SentencePiece numbers kinds, and whether a space
is put before a text. What they leave out, no such model has: its text is not normalized, and what is no piece is
spelled in bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]  # made when the module is imported
    ModelProto,
    TrainerSpec,
)

from megatron_lite.data.tokenizer import SPACE_MARK

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def sentencepiece_model(said: Mapping[str, Any]) -> bytes:
    """From metadata, by their names after `tokenizer.ggml.`. Raises ValueError, saying why, for what makes no model."""
    tokens, scores, kinds = _pieces(said)
    if said.get("precompiled_charsmap") or said.get("remove_extra_whitespaces"):
        raise ValueError("it normalizes text")
    end, begin = (_place(said, name, len(tokens)) for name in ("eos_token_id", "bos_token_id"))
    if end < 0:
        raise ValueError("it does not say what ends a document")
    kinds[end] = CONTROL  # no text ends a document, whatever the file has it as
    model = ModelProto()
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = TrainerSpec.BPE, len(tokens)
    trainer.byte_fallback = BYTE in kinds
    trainer.unk_id, trainer.unk_piece = kinds.index(UNKNOWN), tokens[kinds.index(UNKNOWN)]
    trainer.eos_id, trainer.eos_piece = end, tokens[end]
    trainer.bos_id, trainer.bos_piece = begin, tokens[begin] if begin >= 0 else ""
    trainer.pad_id, trainer.pad_piece = -1, ""
    normalizer.name, normalizer.escape_whitespaces, normalizer.remove_extra_whitespaces = "identity", True, False
    normalizer.add_dummy_prefix = said.get("add_space_prefix", True)
    made = model.SerializeToString()
    try:
        SentencePieceProcessor().LoadFromSerializedProto(made)
    except RuntimeError as error:
        raise ValueError(f"SentencePiece cannot open what it makes: {error}") from None
    return made


def _place(said: Mapping[str, Any], name: str, count: int) -> int:
    """Of a special token among so many, or -1."""
    index = said.get(name)
    return index if isinstance(index, int) and 0 <= index < count else -1


def _pieces(said: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[float], list[int]]:
    tokens, scores, kinds = (said.get(name) for name in ("tokens", "scores", "token_type"))
    if not isinstance(tokens, list) or not isinstance(scores, list) or not isinstance(kinds, list):
        raise ValueError("it lacks pieces, their scores or their types")
    if not len(tokens) == len(scores) == len(kinds) or len(set(tokens)) < len(tokens):
        raise ValueError("it has a piece twice, or not a score and a type for each")
    if kinds.count(UNKNOWN) != 1:
        raise ValueError(f"it has {kinds.count(UNKNOWN)} pieces for what is unknown, not one")
    ranks = [score for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL]
    # Some converters know no scores and write one number; those of a unigram model are logarithms.
    if len(set(ranks)) < 2 or not all(float(rank).is_integer() for rank in ranks):
        raise ValueError("the scores of its pieces are no ranks, as byte pair encoding has them")
    if not any(SPACE_MARK in token for token in tokens):
        raise ValueError("it does not write spaces as U+2581")
    return tokens, scores, list(kinds)
