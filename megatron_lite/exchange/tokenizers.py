"""Tokenizers into a Hugging Face directory: a tokenizer.json as it is, a SentencePiece model as one with the same ids.

The second is byte pair encoding with byte fallback over the very characters of the text: its pieces are written with
spaces where SentencePiece has U+2581, so that a U+2581 in the text is none of them and becomes its three bytes, as
here. What the library cannot do as SentencePiece does:
- bytes that are no whole characters decode to a U+FFFD each, also those of a whole character that stands beside them;
- of two ways to join the same piece that overlap the earlier merge wins, not the left one (no text is known that has
  this; what is written is compared on ADVERSARIAL first).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made when imported

from megatron_lite.data.fast_tokenizer import ADVERSARIAL, check_kind, differ
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer, tokenizer_of
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import CONFIG, JSON, SPACE_MARK, TEMPLATE, TokenizerFiles
from megatron_lite.errors import DataError

WORD = "[^ ]+| +[^ ]*"  # and the spaces before it: no piece has a space behind another character


def hugging_face_files(source: Path | TokenizerFiles, chat_template: str | None = None) -> dict[str, bytes]:
    """By name, what transformers opens, with `chat_template` in place of what the tokenizer may have. A SentencePiece
    model is among them, for those who read it.

    Raises DataError for a SentencePiece model of another kind than ours, or one whose ids would not be the same.
    """
    tokenizer = tokenizer_of(source) if isinstance(source, TokenizerFiles) else open_tokenizer(source)
    files = dict(tokenizer.files.content)
    if isinstance(tokenizer, SentencePieceTokenizer) and JSON not in files:
        files |= _converted(tokenizer)
    if chat_template is not None:
        files[TEMPLATE] = chat_template.encode()
    return files


def _converted(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    model = ModelProto.FromString(tokenizer.files.content[tokenizer.files.main])
    try:
        check_kind(model)
        tree = _tree(model, tokenizer)
    except ValueError as error:
        raise DataError(f"tokenizer {tokenizer.path} cannot become a {JSON}: {error}") from None
    files = {JSON: _json(tree), CONFIG: _json(_config(tokenizer))}
    written = JsonTokenizer(TokenizerFiles(tokenizer.path, JSON, files))
    for text in ADVERSARIAL:
        if differ(tokenizer, written, text):
            raise DataError(f"tokenizer {tokenizer.path} cannot become a {JSON}: it gives other ids for {text[:60]!r}")
    return files


def _tree(model: Any, tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """What tokenizer.json holds. Raises ValueError for a piece that no merges of pieces lead to."""
    kinds = ModelProto.SentencePiece
    pieces = {
        (piece.piece.replace(SPACE_MARK, " ") if piece.type == kinds.NORMAL else piece.piece): index
        for index, piece in enumerate(model.pieces)
    }
    if len(pieces) < len(model.pieces):
        raise ValueError("it has a piece twice")
    normal = {piece.piece.replace(SPACE_MARK, " "): piece.score for piece in model.pieces if piece.type == kinds.NORMAL}
    adds_space = model.normalizer_spec.add_dummy_prefix
    across = any(" " in piece.lstrip(" ") for piece in normal)
    spaces = [{"type": "Prepend", "prepend": " "}] if adds_space else []
    marks = [] if tokenizer.spells_space_mark else [_replace(SPACE_MARK, " ")]
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": name, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for name, index in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Sequence", "normalizers": spaces + marks} if spaces + marks else None,
        "pre_tokenizer": None
        if across
        else {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Isolated", "invert": False},
        "post_processor": _beginning(tokenizer),
        "decoder": {
            "type": "Sequence",
            "decoders": decoders + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []),
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.trainer_spec.unk_piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": pieces,
            "merges": list(_merges(normal)),
        },
    }


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Every way to join two pieces to one, the best piece first."""
    for piece in sorted(scores, key=lambda one: -scores[one]):
        if len(piece) == 1:
            continue
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        if missing := [one for one in piece if one not in scores]:
            raise ValueError(f"it joins {missing[0]!r}, which is no piece")
        yield from ((left, right) for left, right in splits if left in scores and right in scores)


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _beginning(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """A text begins without <s>, as it does in training here, but where a foreign model was trained with it."""
    if not tokenizer.beginning:
        return None
    (index,) = tokenizer.beginning
    return beginning(next(name for name, one in tokenizer.special_tokens.items() if one == index), index)


def beginning(token: str, index: int) -> dict[str, Any]:
    """What transformers puts before a text; here no text begins with it unasked."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing", "single": [first, one], "pair": [first, one, first, two],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }  # fmt: skip


def _config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """tokenizer_config.json: transformers takes tokenizer.json as it is, and adds and cleans nothing."""
    roles = tokenizer.named_tokens
    others = [name for name in tokenizer.special_tokens if name not in roles.values()]
    return {
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "additional_special_tokens": others,
        **roles,
        **tokenizer.files.tree(CONFIG),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _json(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(tree, ensure_ascii=False, indent=1) + "\n").encode()
