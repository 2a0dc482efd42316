"""How many bytes each token spells: together as many as the text of the tokens has."""

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from support.text import random_texts, train_byte_level, train_small_tokenizer

from megatron_lite.data.fast_tokenizer import ADVERSARIAL, FastTokenizer
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError
from megatron_lite.exchange.tokenizers import hugging_face_files

AS_IT_STANDS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
TEXT = "the model reads a shard of text, caf\u00e9 \u00bd  aaaa aa\n"
KINDS = ["SentencePiece", "fast", "byte level", "characters and byte pieces"]


def train_foreign(directory, **options):
    (directory / "texts").write_text(TEXT * 200, encoding="utf-8")
    options = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(input=directory / "texts", model_prefix=directory / "m", **options)
    return SentencePieceTokenizer(directory / "m.model")


def exported(tokenizer, directory):
    directory.mkdir()
    for name, content in hugging_face_files(tokenizer.path, None).items():
        (directory / name).write_bytes(content)
    return JsonTokenizer(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizers")
    model = SentencePieceTokenizer(train_small_tokenizer(directory))
    made = [model, FastTokenizer(model.path), open_tokenizer(train_byte_level(directory / "bytes"))]
    made.append(exported(model, directory / "exported"))
    return [(tokenizer, tokenizer.byte_lengths()) for tokenizer in made]


def spelled(lengths, ids):
    return int(lengths[ids].sum()) if ids else 0


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_the_tokens_of_a_text_spell_as_many_bytes_as_it_has(tokenizers, kind):
    tokenizer, lengths = tokenizers[kind]
    assert lengths.shape == (tokenizer.vocab_size,) and lengths.dtype == np.int64
    for text in (*ADVERSARIAL, *random_texts(4, 30)):
        # A tokenizer.json of characters reads U+2581 as the space that it stands for, as its library does.
        read = text if tokenizer.spells_space_mark else text.replace("\u2581", " ")
        assert spelled(lengths, tokenizer.encode(text)) == len(read.encode()), text[:60]


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab <|im_end>\u0120\u2581\n0x1\u00e9\u65e5"))
@settings(max_examples=100, deadline=None)
def test_of_any_text(tokenizers, text):
    for tokenizer, lengths in tokenizers:
        read = text if tokenizer.spells_space_mark else text.replace("\u2581", " ")
        assert spelled(lengths, tokenizer.encode(text)) == len(read.encode())


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_a_token_spells_the_bytes_that_it_decodes_to_and_a_control_token_none(tokenizers, kind):
    tokenizer, lengths = tokenizers[kind]
    control = list(tokenizer.special_tokens.values())
    assert len(control) >= 3 and not lengths[control].any()
    others = [token for token in range(tokenizer.vocab_size) if token not in control]
    assert lengths[others].min() == 1
    between = tokenizer.encode("x")
    around = len(tokenizer.decode(between * 2).encode())
    for token in others:
        decoded = tokenizer.decode([*between, token, *between])
        if "\ufffd" not in decoded:  # what is no whole character has no text of its own
            assert len(decoded.encode()) - around == lengths[token], token


@pytest.mark.parametrize(
    ("options", "put_before"),
    [(AS_IT_STANDS, " "), (AS_IT_STANDS | {"add_dummy_prefix": False, "split_by_whitespace": False}, "")],
    ids=["as Llama 2's", "pieces across words"],
)
def test_the_space_that_a_model_puts_before_a_text_counts_as_one_of_its_bytes(tmp_path, options, put_before):
    tokenizer = train_foreign(tmp_path, **options)
    lengths = tokenizer.byte_lengths()
    for text in (*ADVERSARIAL, *random_texts(4, 30)):
        read = text if tokenizer.spells_space_mark else text.replace("\u2581", " ")
        expected = len((put_before + read).encode()) if text else 0
        assert spelled(lengths, tokenizer.encode(text)) == expected, text[:60]


@pytest.mark.parametrize(
    "options", [{"normalization_rule_name": "nfkc"}, {"user_defined_symbols": ["<a b>", "caf\u00e9"]}]
)
def test_the_bytes_are_those_of_the_text_as_the_model_normalizes_it(tmp_path, options):
    tokenizer = train_foreign(tmp_path, **options)
    own = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    lengths = tokenizer.byte_lengths()
    for text in (*ADVERSARIAL, TEXT, "a <a b> caf\u00e9s  \u00bd "):
        normalized = own.normalize(text).replace("\u2581", " ")
        assert spelled(lengths, tokenizer.encode(text)) == len(normalized.encode()), text[:60]
    assert own.normalize("  \u00bd") != "  \u00bd"


def test_tokens_that_were_added_as_text_spell_their_names(tmp_path):
    made = train_byte_level(tmp_path / "bytes")
    library = open_tokenizer(made)._library
    library.add_tokens(["<tool> \u65e5"])
    library.save(str(made / "tokenizer.json"))
    tokenizer = open_tokenizer(made)
    lengths = tokenizer.byte_lengths()
    assert lengths[330] == len("<tool> \u65e5".encode()) == 10
    assert spelled(lengths, tokenizer.encode("a<tool> \u65e5b")) == 12


def test_where_an_unknown_character_may_stand_for_any_text_nothing_is_counted(tmp_path):
    tokenizer = train_foreign(tmp_path, byte_fallback=False, vocab_size=60)
    with pytest.raises(DataError, match="has no byte pieces: its <unk> may stand for any text"):
        tokenizer.byte_lengths()
