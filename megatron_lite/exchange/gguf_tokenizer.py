"""The tokenizer that a GGUF file's metadata came from: the tokenizer.json of byte-level BPE, or a SentencePiece model.

Of the former a GGUF file has tokens, merges and special tokens, and of the rest a name, `pre`: how text is cut before
it is merged. The names that are known here stand for what these models' own tokenizer.json says.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from megatron_lite.data.tokenizer import CONFIG, JSON, MODEL, TEMPLATE
from megatron_lite.exchange.gguf_sentencepiece import sentencepiece_model
from megatron_lite.exchange.tokenizers import beginning

CONTROL, USERS = 3, 4  # kinds of tokens: no text has the first, the second is text that is never cut
ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
         "pad_token": "padding_token_id"}  # fmt: skip
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(digits: str) -> list[dict[str, Any]]:
    pattern = {"Regex": WORDS.format(digits)}
    return [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}, _bytes(False)]


CUTS = {
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}


def gguf_tokenizer(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Its files, by the names that a checkpoint and a Hugging Face directory give them.

    Raises ValueError, saying why, for a tokenizer that cannot be told from the metadata.
    """
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    if said.get("model") not in MAKERS:
        raise ValueError(f"it is of the kind {said.get('model')}, not gpt2 (byte-level BPE) or llama (SentencePiece)")
    files = MAKERS[said["model"]](said)
    template = metadata.get("tokenizer.chat_template")
    return files | ({TEMPLATE: template.encode()} if isinstance(template, str) else {})


def _sentencepiece(said: Mapping[str, Any]) -> dict[str, bytes]:
    model = sentencepiece_model(said)  # which looks at the tokens before their roles are told
    return {MODEL: model, CONFIG: _json({"add_bos_token": bool(said.get("add_bos_token", True)), **_roles(said)})}


def _byte_level(said: Mapping[str, Any]) -> dict[str, bytes]:
    if said.get("pre") not in CUTS:
        raise ValueError(f"it cuts text as {said.get('pre')}, which is none of {', '.join(CUTS)}")
    lists = {name: said.get(name) for name in ("tokens", "token_type", "merges")}
    if not all(isinstance(one, list) for one in lists.values()) or len(said["tokens"]) != len(said["token_type"]):
        raise ValueError("it lacks tokens, their types or merges")
    roles = _roles(said)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(said.get("add_bos_token", False)),
        **roles,
    }
    return {JSON: _json(_tree(said, roles if config["add_bos_token"] else {})), CONFIG: _json(config)}


MAKERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, bytes]]] = {"gpt2": _byte_level, "llama": _sentencepiece}


def _roles(said: Mapping[str, Any]) -> dict[str, str]:
    tokens, given = said["tokens"], {role: said[key] for role, key in ROLES.items() if key in said}
    for role, index in given.items():
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ValueError(f"its {role} is {index}, which is none of {len(tokens)} tokens")
    return {role: tokens[index] for role, index in given.items()}


def _tree(said: Mapping[str, Any], begins: Mapping[str, str]) -> dict[str, Any]:
    tokens, kinds, pre = said["tokens"], said["token_type"], said["pre"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, "special": kind == CONTROL, **flags}
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USERS)
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[pre]},
        "post_processor": beginning(begins["bos_token"], said["bos_token_id"]) if "bos_token" in begins else None,
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in said["merges"]],
        },
    }


def _json(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(tree, ensure_ascii=False, indent=1) + "\n").encode()
