"""What a worker makes of a piece of the input: texts to token ids."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from megatron_lite.data.fast_tokenizer import FastTokenizer, differ
from megatron_lite.data.indexed import token_dtype
from megatron_lite.data.jsonl import MalformedLine
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.pieces import Piece
from megatron_lite.data.tokenizer import SPACE_MARK, Tokenizer
from megatron_lite.errors import DataError

if TYPE_CHECKING:
    from megatron_lite.data.sentences import SentenceSplitter

AUDITED_CHARACTERS = 4096  # of each piece, that SentencePiece tokenizes too


@dataclass(frozen=True)
class Settings:
    """What a worker has to know."""

    tokenizer_model: str
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    sentences: str | None = None  # None, "bare" or "whole": with the white space behind them
    fast: bool = True  # with our own encoder, where its ids are SentencePiece's

    @property
    def level(self) -> str:
        """What a sequence is, as Megatron has it in the names of files."""
        return "document" if self.sentences is None else "sentence"


@dataclass(frozen=True)
class Documents:
    """Documents of one key: all tokens, the length of each sequence, the number of sequences of each document."""

    tokens: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray
    text_bytes: int


@dataclass(frozen=True)
class Malformed:
    """A record that was left out: its number in the piece, from 0, the kind of fault, and all that is known of it."""

    record: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Encoded:
    """What became of a piece."""

    documents: tuple[Documents, ...]  # one a key
    records: int
    malformed: list[Malformed]
    empty: int  # texts without a character: documents without a sequence
    lost_marks: int  # U+2581 in the text that the tokenizer cannot spell and turns into spaces
    unspelled: int = 0  # characters whose bytes it lacks


@dataclass
class Packed:
    """Documents of one key as they come in."""

    tokens: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    text_bytes: int = 0

    def add(self, text: str, sequences: list[np.ndarray]) -> None:
        self.tokens += sequences
        self.lengths += map(len, sequences)
        self.sequences.append(len(sequences))
        self.text_bytes += len(text.encode())

    def documents(self, dtype: np.dtype) -> Documents:
        tokens = np.concatenate([np.empty(0, np.int32), *self.tokens]).astype(dtype, copy=False)
        return Documents(tokens, np.array(self.lengths, np.int64), np.array(self.sequences, np.int64), self.text_bytes)


def encode(settings: Settings, piece: Piece) -> Encoded:
    """The documents of a piece. Raises DataError where fast ids differ from SentencePiece's after all."""
    tokenizer = _tokenizer(settings.tokenizer_model, settings.fast)
    dtype = token_dtype(tokenizer.vocab_size)
    packed = [Packed() for _ in settings.json_keys]
    malformed, empty, lost_marks, unspelled, records = [], 0, 0, 0, 0
    audited = not settings.fast
    for record in piece.records(settings.json_keys):
        records += 1
        try:
            if isinstance(record, MalformedLine):
                raise record
            documents = [encode_text(tokenizer, settings, text) for text in record]
        except MalformedLine as error:
            malformed.append(Malformed(records - 1, error.kind, str(error)))
            continue
        for key, text, document in zip(packed, record, documents, strict=True):
            key.add(text, document)
            empty += not text
            lost_marks += 0 if tokenizer.spells_space_mark else text.count(SPACE_MARK)
            unspelled += 0 if tokenizer.unspelled is None else len(tokenizer.unspelled.findall(text))
        if not audited:
            _audit(settings, record[0])
            audited = True
    return Encoded(tuple(key.documents(dtype) for key in packed), records, malformed, empty, lost_marks, unspelled)


def encode_text(tokenizer: Tokenizer, settings: Settings, text: str) -> list[np.ndarray]:
    """The ids of each of a text's sequences, none of them empty. Raises MalformedLine for what cannot be tokenized."""
    try:
        sequences = [ids for part in _parts(settings, text) if len(ids := tokenizer.encode_array(part))]
    except ValueError as error:
        raise MalformedLine("too long without a space", str(error)) from None
    if sequences and settings.append_eod:
        sequences[-1] = np.append(sequences[-1], np.int32(tokenizer.eod_id))
    return sequences


def _parts(settings: Settings, text: str) -> Iterator[str]:
    if settings.sentences is None:
        yield text
        return
    spans = list(_splitter().spans(text))
    if settings.sentences == "bare":
        yield from (text[begin:end] for begin, end in spans)
        return
    ends = [begin for begin, _ in spans[1:]] + [len(text)]
    begins = [0, *ends[:-1]]
    yield from (text[begin:end] for begin, end in zip(begins, ends, strict=True))


def _audit(settings: Settings, text: str) -> None:
    sample = text[:AUDITED_CHARACTERS]
    reference, fast = (_tokenizer(settings.tokenizer_model, fast) for fast in (False, True))
    if differ(reference, fast, sample):
        raise DataError(
            f"the fast encoder gives other ids than SentencePiece for {sample[:60]!r}: take --encoder sentencepiece"
        )


@lru_cache(maxsize=2)
def _tokenizer(path: str, fast: bool) -> Tokenizer:
    """Loaded once a worker."""
    tokenizer = open_tokenizer(path)
    return FastTokenizer(tokenizer.files) if fast else tokenizer


@lru_cache(maxsize=1)
def _splitter() -> "SentenceSplitter":
    from megatron_lite.data.sentences import SentenceSplitter  # nltk takes its time, and few need it

    return SentenceSplitter()
