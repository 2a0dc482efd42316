import numpy as np
import pytest
import sentencepiece
from support.text import random_texts, train_small_tokenizer

from megatron_lite.data import _bpe
from megatron_lite.data import tokenizer as tokenizer_module
from megatron_lite.data.fast_tokenizer import ADVERSARIAL, FastTokenizer, fast_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_the_ids_are_sentencepieces_and_text_comes_back(path):
    reference, fast = SentencePieceTokenizer(path), FastTokenizer(path)
    for text in [*ADVERSARIAL, *random_texts(0, 100)]:
        assert fast.encode(text) == reference.encode(text)
        assert fast.decode(fast.encode(text)) == text


def test_the_fast_encoder_is_taken_where_it_agrees(path):
    tokenizer, line = fast_tokenizer(path, random_texts(0, 3))
    assert isinstance(tokenizer, FastTokenizer)
    assert line == f"tokenizing with the fast encoder: SentencePiece's ids on {len(ADVERSARIAL) + 3} texts"


@pytest.mark.parametrize("wrong", ["ids", "crash"])
def test_sentencepiece_is_taken_where_it_differs_or_fails_on_any_text(path, monkeypatch, wrong):
    original = FastTokenizer._encode

    def encode(self, text):
        if "planted" not in text:
            return original(self, text)
        if wrong == "crash":
            raise RuntimeError
        return np.array([5])

    monkeypatch.setattr(FastTokenizer, "_encode", encode)
    tokenizer, line = fast_tokenizer(path, ["a", "a planted difference"])
    assert type(tokenizer) is SentencePieceTokenizer
    assert line == "tokenizing with SentencePiece: the fast encoder gives other ids for 'a planted difference'"
    assert type(fast_tokenizer(path, ["a"])[0]) is FastTokenizer


def train_foreign(directory, **options):
    (directory / "texts").write_text("the model reads a shard of text, caf\u00e9 \u00bd\n" * 200)
    options = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(input=directory / "texts", model_prefix=directory / "m", **options)
    return str(directory / "m.model")


AS_IT_STANDS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    "options",
    [
        AS_IT_STANDS,  # with a space before the text, as Llama 2's
        AS_IT_STANDS | {"add_dummy_prefix": False, "split_by_whitespace": False},
        AS_IT_STANDS | {"split_by_unicode_script": False, "split_by_number": False},
    ],
)
def test_other_trainers_models_of_this_kind_have_sentencepieces_ids_too(tmp_path, options):
    path = train_foreign(tmp_path, **options)
    reference, fast = sentencepiece.SentencePieceProcessor(model_file=path), FastTokenizer(path)
    texts = [*random_texts(0, 50), "the model reads a shard of text, caf\u00e9 \u00bd" * 20]
    texts += [text for text in ADVERSARIAL if "\u2581" not in text or not fast.spells_space_mark]
    for text in texts:
        assert fast.encode(text) == reference.encode(text)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (AS_IT_STANDS | {"model_type": "unigram", "hard_vocab_limit": False}, "it is no byte pair encoding"),
        (AS_IT_STANDS | {"byte_fallback": False, "vocab_size": 60}, "it has no byte pieces"),
        (AS_IT_STANDS | {"treat_whitespace_as_suffix": True}, "it puts spaces behind words"),
        ({"normalization_rule_name": "nfkc"}, "it normalizes text"),
        ({"normalization_rule_name": "identity"}, "it normalizes text"),
        (AS_IT_STANDS | {"user_defined_symbols": ["<tool>"]}, "it has pieces of its user's"),
    ],
)
def test_a_model_of_another_kind_is_left_to_sentencepiece(tmp_path, options, reason):
    path = train_foreign(tmp_path, **options)
    tokenizer, line = fast_tokenizer(path, [])
    assert type(tokenizer) is SentencePieceTokenizer
    assert line == f"tokenizing with SentencePiece: the fast encoder cannot read {path}: {reason}"


def test_random_text_of_few_and_of_all_characters_has_sentencepieces_ids(path):
    reference, fast = SentencePieceTokenizer(path), FastTokenizer(path)
    rng = np.random.default_rng(0)
    alphabets = ["ab ", "the mod\n ", "".join(map(chr, range(0x20, 0x250))), "ab\u00e9\u0301\u65e5\U0001f642 "]
    for _ in range(2000):
        alphabet = alphabets[rng.integers(len(alphabets))]
        text = "".join(rng.choice(list(alphabet), rng.integers(0, 80)))
        assert fast.encode(text) == reference.encode(text)
        assert fast.encode_array(text).tolist() == reference.encode_array(text).tolist()


def test_more_words_than_are_remembered_have_their_ids(path):
    # Each number of seven letters is a word of its own; the first ones are looked up again at the end.
    reference, fast = SentencePieceTokenizer(path), FastTokenizer(path)
    letters = np.array(list("etaoinshrd"))
    words = ["".join(letters[[int(digit) for digit in f"{number:07}"]]) for number in range(0, 3_000_000, 7)]
    for text in (" ".join(words[:200_000]), " ".join(words[200_000:]), " ".join(words[:1000])):
        fast.encode_array(text)
    assert fast.encode(" ".join(words[:1000])) == reference.encode(" ".join(words[:1000]))
    assert fast.encode(" ".join(words[-1000:])) == reference.encode(" ".join(words[-1000:]))


def test_an_encoder_of_pieces_that_make_no_sense_is_refused():
    with pytest.raises(ValueError, match="a piece twice"):
        _bpe.Encoder([("a", 0.0, 1), ("a", -1.0, 2)], list(range(256)))
    with pytest.raises(ValueError, match="byte_ids has 3 ids"):
        _bpe.Encoder([], [1, 2, 3])
    with pytest.raises(UnicodeEncodeError):
        _bpe.Encoder([], list(range(256))).encode("\ud800")


def test_of_pieces_with_equal_scores_the_leftmost_is_joined_first():
    # By hand: "aaa" is (aa)a, and "abab" with ab and ba of one score is (ab)(ab).
    encoder = _bpe.Encoder([("aa", 0.0, 1000), ("ab", -1.0, 1001), ("ba", -1.0, 1002)], list(range(256)))
    assert encoder.encode("aaa").tolist() == [1000, ord("a")]
    assert encoder.encode("abab").tolist() == [1001, 1001]
    assert encoder.encode("baab").tolist() == [ord("b"), 1000, ord("b")]


@pytest.mark.parametrize("kind", [SentencePieceTokenizer, FastTokenizer])
def test_long_texts_are_tokenized_in_blocks_with_the_same_ids(path, monkeypatch, kind):
    tokenizer = kind(path)
    texts = ["".join(random_texts(seed, 30)) for seed in range(5)] + [text * 3 for text in ADVERSARIAL]
    whole = [tokenizer.encode(text) for text in texts]
    for size in (1, 5, 64):
        monkeypatch.setattr(tokenizer_module, "BLOCK_CHARACTERS", size)
        assert [tokenizer.encode(text) for text in texts] == whole


def test_too_long_a_text_without_a_space_is_refused(path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "LONGEST_BLOCK", 200_000)
    tokenizer = SentencePieceTokenizer(path)
    assert len(tokenizer.encode("a b" * 100_000)) > 100_000
    with pytest.raises(ValueError, match="300000 characters with no space to cut them at; at most 200000"):
        tokenizer.encode("a b" + "a" * 299_997)


def test_a_model_with_pieces_across_words_is_not_cut(path, tmp_path, monkeypatch):
    (tmp_path / "texts").write_text("the model reads a shard of text\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "texts", model_prefix=tmp_path / "m", vocab_size=60, model_type="bpe", minloglevel=2,
        split_by_whitespace=False, add_dummy_prefix=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(tmp_path / "m.model")
    whole = tokenizer.encode("the model reads a shard of text" * 9)
    monkeypatch.setattr(tokenizer_module, "BLOCK_CHARACTERS", 3)
    assert tokenizer.encode("the model reads a shard of text" * 9) == whole
