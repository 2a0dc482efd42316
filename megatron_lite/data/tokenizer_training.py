"""Trains the tokenizer: SentencePiece BPE that gives every text back as it was.

Text is neither normalized nor stripped, whitespace runs and newlines may become pieces, digits stand alone, and what
the vocabulary lacks is spelled in bytes.
"""

import heapq
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import xxhash

from megatron_lite.data.jsonl import MalformedLine, parse_texts, read_batches, total_bytes
from megatron_lite.data.progress import Progress
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.files import partial_path, publish

CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
FILL_IN_THE_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
CONTROL_TOKENS = (*CHAT_TOKENS, *FILL_IN_THE_MIDDLE, *(f"<|reserved_{i}|>" for i in range(51)))
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", *CONTROL_TOKENS)  # in the order of their ids, 0 to 63
SPECIAL_PIECES = len(SPECIAL_TOKENS) + 256  # and every byte
CHUNK_CHARACTERS = 2048  # text is sampled and learned from in pieces of this size, so no document outweighs the rest
READ_BYTES = 1 << 20
# SentencePiece passes over every chunk that holds one of its own marks or a NUL; without them it learns from the rest.
UNLEARNABLE = str.maketrans(dict.fromkeys("\u2581\u2585\0", " "))


@dataclass(frozen=True)
class Trained:
    """What came of a training; `lines` says it in words."""

    tokenizer: Tokenizer
    sample_bytes: int
    sample_tokens: int
    malformed: int

    def lines(self) -> Iterator[str]:
        rate = self.sample_bytes / max(self.sample_tokens, 1)
        yield f"{self.tokenizer.vocab_size} pieces from {self.sample_bytes} bytes of text, {rate:.2f} bytes a token"
        if self.malformed:
            yield f"{self.malformed} malformed lines skipped"


@dataclass(frozen=True)
class Sampling:
    """Which text is learned from: a seeded, uniform sample of the chunks of all documents, `sample_bytes` at most."""

    json_key: str = "text"
    sample_bytes: int = 100_000_000
    seed: int = 1234
    skip_malformed: bool = False


def train_tokenizer(inputs: Sequence[str], model_prefix: str, vocab_size: int, sampling: Sampling) -> Trained:
    """Write {model_prefix}.model, whole or not at all. The same input and seed give the same bytes.

    Ids: SPECIAL_TOKENS (</s>, id 2, ends a document), the 256 bytes, then the learned pieces. Raises
    UsageError for a vocabulary too small for these, DataError for a malformed line (unless they are skipped), for text
    too short for the vocabulary, and for a model that does not give its sample back.
    """
    if vocab_size <= SPECIAL_PIECES:
        raise UsageError(f"--vocab-size {vocab_size} is too small: {SPECIAL_PIECES} pieces are special ones and bytes")
    chunks, malformed = sample_chunks(inputs, sampling)
    if not chunks:
        raise DataError(f"there is no text to learn from in {', '.join(inputs)}")
    path = Path(f"{model_prefix}.model")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path(path).write_bytes(_train(chunks, vocab_size))
    try:
        tokenizer = Tokenizer(partial_path(path))
        tokens = sum(_check_round_trip(tokenizer, chunk) for chunk in chunks)
        publish(path)
    finally:
        partial_path(path).unlink(missing_ok=True)
    sample_bytes = sum(len(chunk.encode()) for chunk in chunks)
    return Trained(Tokenizer(path), sample_bytes, tokens, malformed)


def sample_chunks(inputs: Sequence[str], sampling: Sampling) -> tuple[list[str], int]:
    """The sampled chunks in the order of the corpus, and how many malformed lines were skipped.

    Every chunk draws a number from (seed, its place); the smallest numbers are kept, as many as fit. So one pass and
    `sample_bytes` of memory do, however long the corpus is.
    """
    kept: list[tuple[int, int, str]] = []  # (-draw, place, chunk): a heap whose top is the next to go
    kept_bytes = place = malformed = 0
    with Progress("sample text", total_bytes(inputs)) as progress:
        for batch in read_batches(inputs, READ_BYTES):
            for number, line in enumerate(batch.lines, batch.first_line):
                try:
                    (text,) = parse_texts(line, (sampling.json_key,))
                except MalformedLine as error:
                    if not sampling.skip_malformed:
                        raise DataError(f"{batch.path}:{number}: {error}") from None
                    malformed += 1
                    continue
                for chunk in cut(text, CHUNK_CHARACTERS):
                    draw = xxhash.xxh3_64_intdigest(place.to_bytes(8, "little"), sampling.seed)
                    heapq.heappush(kept, (-draw, place, chunk))
                    kept_bytes += len(chunk.encode())
                    place += 1
                    while kept_bytes > sampling.sample_bytes:
                        kept_bytes -= len(heapq.heappop(kept)[2].encode())
            progress.advance(batch.position, f"{kept_bytes} bytes kept")
    return [chunk for _, _, chunk in sorted(kept, key=lambda entry: entry[1])], malformed


def cut(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of at most `size` characters, cut after a newline where one stands in the second half."""
    begin = 0
    while begin < len(text):
        end = begin + size
        newline = text.rfind("\n", begin + size // 2, end) + 1
        if newline and end < len(text):
            end = newline
        yield text[begin:end]
        begin = end


def _train(chunks: Iterable[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(chunk.translate(UNLEARNABLE) for chunk in chunks),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            max_sentence_length=8 * CHUNK_CHARACTERS,  # bytes; longer ones would be passed over
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=list(CONTROL_TOKENS),
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece could not train {vocab_size} pieces on this text: {error}") from None
    return model.getvalue()


def _check_round_trip(tokenizer: Tokenizer, chunk: str) -> int:
    """The number of its tokens. Raises DataError where they do not give the chunk back."""
    ids = tokenizer.encode(chunk)
    if tokenizer.decode(ids) != chunk:
        raise DataError(f"the trained tokenizer does not give back {chunk[:200]!r}")
    return len(ids)
