"""Trains the tokenizer: SentencePiece BPE that gives every text back as it was.

Text is neither normalized nor stripped, whitespace runs and newlines may become pieces, digits stand alone, and what
the vocabulary lacks is spelled in bytes.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from megatron_lite.data.fast_tokenizer import ADVERSARIAL
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.text_sample import CHUNK_CHARACTERS, Sampling, TextSample, sample_text
from megatron_lite.data.tokenizer_report import TokenizerReport, measure
from megatron_lite.errors import DataError, UsageError
from megatron_lite.files import partial_path, publish

CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
FILL_IN_THE_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
CONTROL_TOKENS = (*CHAT_TOKENS, *FILL_IN_THE_MIDDLE, *(f"<|reserved_{i}|>" for i in range(51)))
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", *CONTROL_TOKENS)  # in the order of their ids, 0 to 63
SPECIAL_PIECES = len(SPECIAL_TOKENS) + 256  # and every byte
CHECKED_BYTES = 4_000_000  # of the sample, that must come back from their tokens
# SentencePiece passes over every chunk that holds one of its own marks or a NUL; without them it learns from the rest.
UNLEARNABLE = str.maketrans(dict.fromkeys("\u2581\u2585\0", " "))


@dataclass(frozen=True)
class Trained:
    """What came of a training; `lines` says it in words and a table."""

    tokenizer: SentencePieceTokenizer
    sample_bytes: int
    malformed: int
    report: TokenizerReport

    def lines(self) -> Iterator[str]:
        yield f"{self.tokenizer.vocab_size} pieces from {self.sample_bytes} bytes of text"
        if self.malformed:
            yield f"{self.malformed} malformed records skipped"
        yield from self.report.lines()


def train_tokenizer(inputs: Sequence[str], model_prefix: str, vocab_size: int, sampling: Sampling) -> Trained:
    """Write {model_prefix}.model and {model_prefix}.report.json, each whole or not at all.

    The same input and seed give the same bytes. Ids: SPECIAL_TOKENS (</s>, id 2, ends a document), the 256 bytes, then
    the learned pieces. Raises UsageError for a vocabulary too small for these, DataError for a malformed record (unless
    they are skipped), for text too short for the vocabulary, and for a model that does not give its sample back.
    """
    if vocab_size <= SPECIAL_PIECES:
        raise UsageError(f"--vocab-size {vocab_size} is too small: {SPECIAL_PIECES} pieces are special ones and bytes")
    sample = sample_text(inputs, sampling)
    if not sample.chunks:
        raise DataError(f"there is no text to learn from in {', '.join(inputs)}")
    path = Path(f"{model_prefix}.model")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path(path).write_bytes(_train(sample.chunks, vocab_size))
    try:
        tokenizer = SentencePieceTokenizer(partial_path(path))
        _check_round_trip(tokenizer, sample)
        report = measure(tokenizer, sample)
        publish(path)
    finally:
        partial_path(path).unlink(missing_ok=True)
    report.save(Path(f"{model_prefix}.report.json"))
    return Trained(SentencePieceTokenizer(path), sum(sample.learned.values()), sample.malformed, report)


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


def _check_round_trip(tokenizer: SentencePieceTokenizer, sample: TextSample) -> None:
    """Raises DataError where tokens do not give a text back: odd ones, the held-out ones, and some of the sample."""
    step = -(-sum(sample.learned.values()) // CHECKED_BYTES)
    for text in (*ADVERSARIAL, *(held_out.text for held_out in sample.held_out), *sample.chunks[::step]):
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise DataError(f"the trained tokenizer does not give back {text[:200]!r}")
