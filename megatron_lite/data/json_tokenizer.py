"""A tokenizer.json, as Llama 3, SmolLM2 and Qwen have it, through the tokenizers library."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import orjson

from megatron_lite.data.tokenizer import CONFIG, GENERATION, JSON, SPACE_MARK, Tokenizer, TokenizerFiles, read_files
from megatron_lite.errors import DataError, UsageError

# What a text is cut at has to hold in all of these, and what may get lost is in them.
ODD = (
    " a b  c\t d\n e ",
    "It's the end of don't we'll, x1 of 2y a\u2581b",
    "A Big Camel casE of CAPS and I'm (a b) [c d] a\u00e9 b \u65e5 a b",
)
ACROSS_WORDS = re.compile("[A-Za-z][ \u0120\u2581][A-Za-z]")  # as bytes, as SentencePiece, or as it is
CONTROLS = [byte for byte in (*range(0x20), 0x7F) if chr(byte) not in "\t\n\r"]
PLANES = {lead: (0x40000 * (lead - 0xF0), min(0x40000 * (lead - 0xEF) - 1, 0x10FFFF)) for lead in range(0xF1, 0xF5)}
NO_TEXT = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))  # UTF-8 has none of these
RARE = frozenset((*CONTROLS, *PLANES))  # a vocabulary without them is one that the text it was made from had none of
BYTES = dict.fromkeys(f"<0x{byte:02X}>" for byte in range(256))


class JsonTokenizer(Tokenizer):
    """Byte pair encoding of bytes, or of characters with bytes for what is missing: every text comes back, but for what
    a normalizer does (`normalizes`; Qwen's composes accents), and characters `unspelled` (SmolLM2's vocabulary lacks
    the bytes of some controls and of two planes that Unicode does not use).

    What a tokenizer.json may say beside that about training and batches does not count here: truncation, padding,
    dropout, tokens that a post-processor adds. Added tokens that are not marked special are text like all other.
    """

    word_end = re.compile("[A-Za-z](?= [A-Za-z])")

    def __init__(self, source: str | Path | TokenizerFiles):
        """Raises DataError for a file of another kind, one that lacks bytes, or one without an end of document."""
        files = source if isinstance(source, TokenizerFiles) else read_files(source)
        tree = files.tree(JSON)
        super().__init__(files)
        vocabulary, missing = self._checked_vocabulary(tree)
        self.unspelled = _characters(missing)
        self._library = self._opened(tree)
        added = self._library.get_added_tokens_decoder()
        self.vocab_size = max(self._library.get_vocab(with_added_tokens=True).values()) + 1
        self.eod_id, self.files = self._end_of_document()
        self.special_tokens = {one.content: index for index, one in sorted(added.items()) if one.special}
        self.special_tokens[self._library.id_to_token(self.eod_id)] = self.eod_id
        self._special = frozenset(self.special_tokens.values())
        self._check_special()
        self.normalizes = tree.get("normalizer") is not None
        self.spells_space_mark = all(self._comes_back(text) for text in (SPACE_MARK, *ODD))
        across = ACROSS_WORDS.search("\n".join(vocabulary)) is not None
        self._cuts_at_words = not across and all(self._parts_fit(text) for text in ODD)

    def encode_block(self, text: str) -> list[int]:
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """What the post-processor puts before a text, as Llama 3's does."""
        plain, given = self.encode_block("a"), self._library.encode("a", add_special_tokens=True).ids
        place = next(i for i in range(len(given)) if given[i : i + len(plain)] == plain)
        return tuple(given[:place])

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise IndexError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        return self._library.decode([i for i in ids if i not in self._special], skip_special_tokens=False)

    def byte_lengths(self) -> np.ndarray:
        """As the base class says; an id without a token has 0."""
        tree = self.files.tree(JSON)
        length = len if "ByteLevel" in _kinds(tree.get("decoder"), "decoders") else _bytes_of_piece
        lengths = np.zeros(self.vocab_size, np.int64)
        for name, token in tree["model"]["vocab"].items():
            lengths[token] = length(name)
        for token, one in self._library.get_added_tokens_decoder().items():
            lengths[token] = len(one.content.encode())
        lengths[list(self._special)] = 0
        return lengths

    def _checked_vocabulary(self, tree: Mapping[str, Any]) -> tuple[Mapping[str, int], list[int]]:
        """The model's own, and which bytes it lacks of those that text can have."""
        model = tree.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise DataError(f"tokenizer {self.path} is no tokenizer.json: it has no model with a vocab")
        if model.get("type", "BPE") != "BPE" or "merges" not in model:
            raise DataError(f"tokenizer {self.path} is {model.get('type')}: of a tokenizer.json only BPE is read")
        kinds = [_kinds(tree.get("decoder"), "decoders"), _kinds(tree.get("pre_tokenizer"), "pretokenizers")]
        if all("ByteLevel" in kind for kind in kinds):
            needed: Iterable[str] = _byte_letters()
        elif model.get("byte_fallback") and "ByteFallback" in kinds[0]:
            needed = BYTES
        else:
            raise DataError(
                f"tokenizer {self.path} is BPE of characters alone: only one with all bytes keeps every text"
            )
        missing = [byte for byte, name in enumerate(needed) if name not in model["vocab"] and byte not in NO_TEXT]
        if wanted := [byte for byte in missing if byte not in RARE]:
            raise DataError(
                f"tokenizer {self.path} lacks {len(wanted)} bytes, such as 0x{wanted[0]:02X}: text would get lost"
            )
        return model["vocab"], missing

    def _opened(self, tree: Mapping[str, Any]) -> Any:
        plain = {**tree, "truncation": None, "padding": None, "model": {**tree["model"], "dropout": None}}
        package = library(self.path)
        try:
            opened = package.Tokenizer.from_str(orjson.dumps(plain).decode())
        except Exception as error:  # the library raises nothing more special
            raise DataError(f"tokenizer {self.path} is no tokenizer.json that can be read: {error}") from None
        for one in tree.get("added_tokens", ()):
            name, index = one["content"], one["id"]
            if (found := opened.token_to_id(name)) != index:  # the library closes gaps
                raise DataError(
                    f"tokenizer {self.path}: its {name!r} would have the id {found}, not {index}: an id before it is "
                    f"missing"
                )
        opened.encode_special_tokens = True  # as the text that they are
        return opened

    def _end_of_document(self) -> tuple[int, TokenizerFiles]:
        """By name in tokenizer_config.json, or else by id in generation_config.json or the model's config.json.

        The last does not go with a tokenizer, so what it says is kept as generation_config.json.
        """
        name = self.files.tree(CONFIG).get("eos_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name is not None:
            found = self._library.token_to_id(name)
            if found is None:
                raise DataError(f"tokenizer {self.path}: eos_token {name!r} of {CONFIG} is none of its tokens")
            return found, self.files
        files = self.files
        ids = files.tree(GENERATION).get("eos_token_id")
        if ids is None:
            files, ids = _with_generation(files)
        found = ids[0] if isinstance(ids, list) and ids else ids
        if not isinstance(found, int):
            raise DataError(
                f"tokenizer {self.path} does not say what ends a document: name it as eos_token in {CONFIG} beside it"
            )
        if not 0 <= found < self.vocab_size or self._library.id_to_token(found) is None:
            raise DataError(f"tokenizer {self.path}: eos_token_id {found} is none of its tokens")
        return found, files

    def _check_special(self) -> None:
        for name in self.special_tokens:
            if not self._special.isdisjoint(self.encode_block(name)):
                raise DataError(f"tokenizer {self.path} makes a control token of the text {name!r}: mark it as special")

    def _comes_back(self, text: str) -> bool:
        return self.decode(self.encode_block(text)) == text

    def _parts_fit(self, text: str) -> bool:
        whole = self.encode_block(text)
        ends = [word.end() for word in self.word_end.finditer(text)]
        return all(self.encode_block(text[:end]) + self.encode_block(text[end:]) == whole for end in ends)


def _kinds(part: Mapping[str, Any] | None, several: str) -> set[str]:
    """The types of a part of a tokenizer.json, and of those that it is a sequence of."""
    return {part["type"], *(one["type"] for one in part.get(several, ()))} if part else set()


def _bytes_of_piece(name: str) -> int:
    """Of a piece of characters, with the mark for a space, or of one byte."""
    return 1 if name in BYTES else len(name.replace(SPACE_MARK, " ").encode())


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it is to be seen, or one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _characters(missing: Iterable[int]) -> re.Pattern[str] | None:
    """What these bytes, all of them RARE, begin."""
    ranges = [PLANES.get(byte, (byte, byte)) for byte in missing]
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]") if ranges else None


@cache
def library(path: str) -> ModuleType:
    """The package, of which `path` is to be read with."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes share the cores, not threads of each
    try:
        import tokenizers
    except ImportError:
        raise UsageError(
            f"tokenizer {path} is a tokenizer.json, which takes the package tokenizers: pip install "
            "'megatron_lite[data]'"
        ) from None
    return tokenizers


def _with_generation(files: TokenizerFiles) -> tuple[TokenizerFiles, Any]:
    """What the config.json of a Hugging Face directory says of the end of a document."""
    path = Path(files.path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file():
        return files, None
    content = {**files.content, "config.json": config.read_bytes()}
    ids = replace(files, content=content).tree("config.json").get("eos_token_id")
    if ids is None:
        return files, None
    said = {**files.tree(GENERATION), "eos_token_id": ids}
    return replace(files, content={**files.content, GENERATION: orjson.dumps(said)}), ids
