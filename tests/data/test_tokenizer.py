import sys

import numpy as np
import pytest
import sentencepiece
from support.text import random_texts, train_small_tokenizer, write_jsonl

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.text_sample import Sampling
from megatron_lite.data.tokenizer_training import SPECIAL_PIECES, SPECIAL_TOKENS, train_tokenizer
from megatron_lite.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


ODD_TEXTS = {
    "nothing": "",
    "spaces at both ends": "  a  b \t ",
    "newlines": "\n\na\r\n\n\n\tb\n",
    "a NUL and other controls": "a\0b\x01\x7f\x1b[0m",
    "names of special pieces": "<s></s><unk><|user|><0x0A>",
    "accents composed and decomposed": "é é ﬁ ½ Ａ",
    "other scripts": "日本語 русский עברית ไทย 🙂👩‍👩‍👧",
    "separators": "\u00a0\u2028\u3000\u200b\ufeff",
    "the trainer's other mark": "\u2585",
    "digits": "3.14159 2,048",
    "the last code point": "\U0010ffff",
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_text_comes_back_as_it_was(tokenizer, name):
    text = ODD_TEXTS[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_as_it_was(tokenizer):
    rng = np.random.default_rng(0)
    surrogates = range(0xD800, 0xE000)
    for size in (1, 10, 1000):
        for high in (0x80, 0x3000, sys.maxunicode + 1):
            points = [p for p in rng.integers(0, high, size).tolist() if p not in surrogates]
            text = "".join(map(chr, points))
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["a\u2581b", "\u2581", "\u2581\u2581 \u2581 ", " \u2581é\u2581\u0301"])
def test_the_mark_of_a_space_is_told_from_a_space(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_of_text_without_the_mark_of_a_space_are_sentencepieces_own(tokenizer):
    own = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    for text in [*ODD_TEXTS.values(), *random_texts(5, 50)]:
        assert tokenizer.encode(text) == own.encode(text)


def test_the_mark_of_a_space_is_spelled_whatever_letters_the_model_has_learned(tmp_path):
    corpus = write_jsonl(tmp_path / "c.jsonl", ["qz " * 50] * 50)
    tokenizer = train_tokenizer([str(corpus)], str(tmp_path / "t"), 325, Sampling()).tokenizer
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a\u2581b"


def test_a_model_that_adds_a_space_keeps_sentencepieces_ids_for_its_mark(tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("the model reads a shard of text\n" * 200)
    options = {"model_prefix": tmp_path / "m", "vocab_size": 290, "model_type": "bpe", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=texts, byte_fallback=True, **options)
    tokenizer = SentencePieceTokenizer(tmp_path / "m.model")
    assert not tokenizer.spells_space_mark
    own = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    assert tokenizer.encode("a\u2581b") == own.encode("a\u2581b")


def test_text_never_becomes_a_control_token(tokenizer):
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(ids) == "".join(SPECIAL_TOKENS)


def test_the_special_tokens_are_known_by_name(tokenizer):
    assert tokenizer.special_tokens == {name: i for i, name in enumerate(SPECIAL_TOKENS)}
    assert len(SPECIAL_TOKENS) == 64
    assert tokenizer.identity.special_tokens["<|fim_middle|>"] == tokenizer.special_tokens["<|fim_middle|>"]


def test_only_byte_pieces_are_bytes(tokenizer):
    assert [i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)] == list(range(64, 64 + 256))


def test_every_digit_stands_alone(tokenizer):
    assert len(tokenizer.encode("1234")) >= 4
    assert all(
        sum(c.isdigit() for c in tokenizer.decode([i])) <= 1 for i in range(SPECIAL_PIECES, tokenizer.vocab_size)
    )


def test_whitespace_runs_became_pieces_where_the_text_has_them(tokenizer):
    text = random_texts(0, 1)[0]
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(IndexError):
        tokenizer.decode([tokenizer.vocab_size])


def test_the_end_of_a_document_is_id_2_and_decodes_to_nothing(tokenizer):
    assert tokenizer.eod_id == 2
    assert tokenizer.decode([*tokenizer.encode("a b"), tokenizer.eod_id]) == "a b"


def test_a_model_without_an_end_of_document_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(random_texts(0, 50)),
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(DataError, match="has no </s>"):
        SentencePieceTokenizer(tmp_path / "m.model")
