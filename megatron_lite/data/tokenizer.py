"""What every tokenizer here does, and the files that one is made of."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.errors import DataError

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space inside, and decodes as one
BLOCK_CHARACTERS = 1 << 16  # tokenized at once where the model allows it
BEFORE = ("\n", "0", "|", "a")  # characters that text may follow without a change of its ids
LONGEST_BLOCK = 1 << 24  # characters; SentencePiece takes some 50 bytes of memory for each

MODEL, JSON = "tokenizer.model", "tokenizer.json"  # one of them says how text becomes ids
CONFIG, TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # where nothing says so
BESIDE = (CONFIG, TEMPLATE, GENERATION, "special_tokens_map.json")
FILES = (MODEL, JSON, *BESIDE)  # by these names in a checkpoint and in a Hugging Face directory


@dataclass(frozen=True)
class TokenizerFiles:
    """`content` of FILES, by name; `main` is the one that says how text becomes ids; `path` as it was given."""

    path: str
    main: str
    content: Mapping[str, bytes]

    def tree(self, name: str) -> Mapping[str, Any]:
        """A JSON file's object; empty where there is none. Raises DataError for a damaged one."""
        if name not in self.content:
            return {}
        try:
            tree = json.loads(self.content[name])
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise DataError(f"tokenizer {self.path}: {name} is damaged: it holds no JSON object")
        return tree


def read_files(path: str | Path) -> TokenizerFiles:
    """A file, recognized by its content, or the tokenizer in a directory; and what lies beside either.

    All of it is held, so that a checkpoint can carry it whatever becomes of the path. Raises DataError where nothing is
    found.
    """
    found = Path(path)
    directory = found if found.is_dir() else found.parent
    if found.is_dir():
        models = [MODEL] if (found / MODEL).is_file() else sorted(one.name for one in found.glob("*.model"))
        names = [JSON] if (found / JSON).is_file() else models
        if len(names) != 1:
            what = f"several .model files: {', '.join(names)}" if names else f"neither {JSON} nor a .model file"
            raise DataError(f"tokenizer {path}: the directory holds {what}")
        found = found / names[0]
    try:
        content = found.read_bytes()
        main = JSON if re.match(rb"\s*\{", content) else MODEL
        beside = (*BESIDE, MODEL) if main == JSON else BESIDE
        there = {name: (directory / name).read_bytes() for name in beside if (directory / name).is_file()}
    except OSError as error:
        raise DataError(f"tokenizer {path}: {error.strerror}") from None
    return TokenizerFiles(str(path), main, {main: content, **there})


class Tokenizer(ABC):
    """Text to ids and back.

    Text never becomes a control token: "</s>" in a document is four characters, not the end of it. Where the names of
    control tokens are meant, as in a filled chat template, `encode_marked` says so.
    """

    files: TokenizerFiles
    vocab_size: int  # tokens that were added to the model are among them
    eod_id: int  # ends a document
    special_tokens: dict[str, int]  # ids of the tokens that no text gives, by name
    spells_space_mark: bool  # spaces and U+2581 come back as they were, and parts of a text can be encoded one by one
    unspelled: re.Pattern[str] | None = None  # characters whose bytes the vocabulary lacks: they get lost
    word_end: ClassVar[re.Pattern[str]]  # the end of a word, where a long text is cut
    _cuts_at_words: bool

    def __init__(self, files: TokenizerFiles):
        self.files = files

    @property
    def path(self) -> str:
        return self.files.path

    @cached_property
    def sha256(self) -> str:
        """Of the one file that says how text becomes ids."""
        return hashlib.sha256(self.files.content[self.files.main]).hexdigest()

    @property
    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(self.sha256, self.vocab_size, self.eod_id, self.special_tokens)

    @cached_property
    def chat_template(self) -> str | None:
        """Jinja, as transformers finds it: in a file of its own, or in tokenizer_config.json."""
        if TEMPLATE in self.files.content:
            return self.files.content[TEMPLATE].decode()
        found = self.files.tree(CONFIG).get("chat_template")
        if isinstance(found, list):  # several by name
            found = next((one["template"] for one in found if one["name"] == "default"), None)
        return found

    @cached_property
    def named_tokens(self) -> dict[str, str]:
        """The names of tokens with a role (bos_token, eos_token, ..), as transformers finds them; where no file says
        so, as a model that was trained here has them.
        """
        usual = {role: name for role, name in ROLES.items() if name in self.special_tokens}
        tree = {**usual, **self.files.tree("special_tokens_map.json"), **self.files.tree(CONFIG)}
        named = {role: one.get("content") if isinstance(one, dict) else one for role, one in tree.items()}
        return {role: name for role, name in named.items() if role.endswith("_token") and isinstance(name, str)}

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """What ends an answer: the end of a document, and what generation_config.json names beside it."""
        said = self.files.tree(GENERATION).get("eos_token_id")
        return frozenset([self.eod_id, *(said if isinstance(said, list) else [] if said is None else [said])])

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """Ids that the model saw before each text when it was trained: <s> or none, as tokenizer_config.json says."""
        first = self.named_tokens.get("bos_token")
        wanted = self.files.tree(CONFIG).get("add_bos_token") and first in self.special_tokens
        return (self.special_tokens[first],) if wanted and first is not None else ()

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to continue; an empty one begins a document, as after another's end."""
        return [*self.beginning, *self.encode(text)] or [self.eod_id]

    @abstractmethod
    def encode_block(self, text: str) -> list[int]:
        """The ids of a text that is not long."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens have none. Raises IndexError for an id outside the vocabulary."""

    @abstractmethod
    def byte_lengths(self) -> np.ndarray:
        """int64 [vocab_size]: how many bytes of UTF-8 each token spells; a text's tokens together as many as it has.

        A space is one however it is written inside, a piece that stands for a byte is one, control tokens are none.
        Where a text does not come back as it was, the sum is that of the text which was read: normalized, with the
        space that a model puts before it, without what it leaves out. Raises DataError where a token may stand for any
        text.
        """

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ValueError for more than LONGEST_BLOCK characters with no place to cut them."""
        return [token for block in self.blocks(text) for token in self.encode_block(block)]

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids, int32 [tokens]."""
        return np.array(self.encode(text), np.int32)

    def encode_after(self, text: str) -> list[int]:
        """The ids of a text that goes on where another ended: without the space that some models (SentencePiece's
        dummy prefix) put before each text. As behind a character that it does not merge with, whose ids are left off.
        """
        if self.spells_space_mark:
            return self.encode(text)
        for character in BEFORE:
            before, both = self.encode(character), self.encode(character + text)
            if before and both[: len(before)] == before:
                return both[len(before) :]
        return self.encode(text)

    def encode_marked(self, text: str, but: str = "") -> list[int]:
        """The ids of a text in which the names of special tokens stand for these; those with `but` inside do not, and
        `but` is left out.
        """
        return [token for _, ids in self.encode_parts(text, (), but) for token in ids]

    def encode_parts(self, text: str, cuts: Iterable[int], but: str = "") -> Iterator[tuple[int, list[int]]]:
        """The same part by part, each with its place in the text: the names, what is between them, and of that what
        lies between `cuts`, places in the text in their order; no token reaches over one.
        """
        begin, ends = 0, [*cuts, len(text)]
        for name in self.control_names.finditer(text):
            yield from self._between(text, begin, name.start(), ends, but)
            yield name.start(), [self.special_tokens[name[0]]]
            begin = name.end()
        yield from self._between(text, begin, len(text), ends, but)

    def _between(
        self, text: str, begin: int, end: int, cuts: Iterable[int], but: str
    ) -> Iterator[tuple[int, list[int]]]:
        encode = self.encode
        for cut in [cut for cut in cuts if begin < cut < end] + [end]:
            if part := text[begin:cut].replace(but, "") if but else text[begin:cut]:
                yield begin, encode(part)
                encode = self.encode_after
            begin = cut

    @cached_property
    def control_names(self) -> re.Pattern[str]:
        """The name of a token that no text gives."""
        names = sorted(self.special_tokens, key=len, reverse=True)  # of two that begin alike the longer
        return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def blocks(self, text: str) -> Iterator[str]:
        """Memory and time grow faster than a text, so a long one is tokenized in blocks, with the same ids.

        No piece reaches from a word into the space behind it, so no merge does, and the words' ids are independent.
        """
        if len(text) <= BLOCK_CHARACTERS:
            yield text
            return
        begin = 0
        while begin < len(text):
            word = self.word_end.search(text, begin + BLOCK_CHARACTERS - 1) if self._cuts_at_words else None
            end = word.end() if word else len(text)
            if end - begin > LONGEST_BLOCK:
                raise ValueError(
                    f"{end - begin} characters with no space to cut them at; at most {LONGEST_BLOCK} are tokenized"
                )
            yield text[begin:end]
            begin = end
