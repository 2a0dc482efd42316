import sys

import pytest
from support.text import random_texts, train_small_tokenizer

from megatron_lite.data import tokenizer as tokenizer_module
from megatron_lite.data.fast_tokenizer import ADVERSARIAL, FastTokenizer, fast_tokenizer
from megatron_lite.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_kitoken_gives_sentencepieces_ids_and_text_comes_back(path):
    reference, fast = Tokenizer(path), FastTokenizer(path)
    for text in [*ADVERSARIAL, *random_texts(0, 100)]:
        assert fast.encode(text) == reference.encode(text)
        assert fast.decode(fast.encode(text)) == text


def test_kitoken_is_taken_where_it_agrees(path):
    tokenizer, line = fast_tokenizer(path, random_texts(0, 3))
    assert isinstance(tokenizer, FastTokenizer)
    assert line == f"tokenizing with kitoken: SentencePiece's ids on {len(ADVERSARIAL) + 3} texts"


@pytest.mark.parametrize("wrong", ["ids", "crash"])
def test_sentencepiece_is_taken_where_kitoken_differs_or_fails_on_any_text(path, monkeypatch, wrong):
    def encode(self, text):
        if "planted" not in text:
            return Tokenizer._encode(self, text)
        if wrong == "crash":
            raise RuntimeError
        return [5]

    monkeypatch.setattr(FastTokenizer, "_encode", encode)
    tokenizer, line = fast_tokenizer(path, ["a", "a planted difference"])
    assert type(tokenizer) is Tokenizer
    assert line == "tokenizing with SentencePiece: kitoken gives other ids for 'a planted difference'"
    assert type(fast_tokenizer(path, ["a"])[0]) is FastTokenizer


def test_sentencepiece_is_taken_where_there_is_no_kitoken(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kitoken", None)
    tokenizer, line = fast_tokenizer(path, [])
    assert type(tokenizer) is Tokenizer
    assert line.startswith("tokenizing with SentencePiece: kitoken does not read")


@pytest.mark.parametrize("kind", [Tokenizer, FastTokenizer])
def test_long_texts_are_tokenized_in_blocks_with_the_same_ids(path, monkeypatch, kind):
    tokenizer = kind(path)
    texts = ["".join(random_texts(seed, 30)) for seed in range(5)] + [text * 3 for text in ADVERSARIAL]
    whole = [tokenizer.encode(text) for text in texts]
    for size in (1, 5, 64):
        monkeypatch.setattr(tokenizer_module, "BLOCK_CHARACTERS", size)
        assert [tokenizer.encode(text) for text in texts] == whole


def test_too_long_a_text_without_a_space_is_refused(path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "LONGEST_BLOCK", 200_000)
    tokenizer = Tokenizer(path)
    assert len(tokenizer.encode("a b" * 100_000)) > 100_000
    with pytest.raises(ValueError, match="300000 characters with no space to cut them at; at most 200000"):
        tokenizer.encode("a b" + "a" * 299_997)


def test_a_model_with_pieces_across_words_is_not_cut(path, tmp_path, monkeypatch):
    import sentencepiece

    (tmp_path / "texts").write_text("the model reads a shard of text\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "texts", model_prefix=tmp_path / "m", vocab_size=60, model_type="bpe", minloglevel=2,
        split_by_whitespace=False, add_dummy_prefix=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = Tokenizer(tmp_path / "m.model")
    whole = tokenizer.encode("the model reads a shard of text" * 9)
    monkeypatch.setattr(tokenizer_module, "BLOCK_CHARACTERS", 3)
    assert tokenizer.encode("the model reads a shard of text" * 9) == whole
