"""A SentencePiece model out of a GGUF file's metadata, which llama.cpp's own Python wrote from the origin."""

import json

import gguf
import pytest
import sentencepiece
import tokenizers
from exchange.models import model_of, weights_of, write_gguf
from exchange.test_tokenizers import AS_IT_STANDS, train_foreign
from gguf.vocab import SentencePieceVocab
from support.generation import ONE
from support.text import random_texts, train_small_tokenizer

from megatron_lite.checkpoint import open_checkpoint
from megatron_lite.data.fast_tokenizer import ADVERSARIAL, fast_tokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.exchange import convert
from megatron_lite.exchange.gguf_tokenizer import gguf_tokenizer
from megatron_lite.inference.text import find_tokenizer

TEXTS = [*ADVERSARIAL, *random_texts(0, 50)]
OURS = {"add_dummy_prefix": False}


def train(directory, **options):
    """A directory with a tokenizer.model, as of another trainer or of this program."""
    directory.mkdir()
    path = train_small_tokenizer(directory) if options == OURS else train_foreign(directory, **AS_IT_STANDS, **options)
    path.rename(directory / "tokenizer.model")
    return directory


def metadata_of(directory, adds_space=True, **changes):
    vocabulary = SentencePieceVocab(directory)
    pieces = [(text.decode(), score, int(kind)) for text, score, kind in vocabulary.all_tokens()]
    tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    said = {
        "model": vocabulary.tokenizer_model, "pre": "default", "tokens": tokens, "scores": scores,
        "token_type": kinds, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes,
    }  # fmt: skip
    if not adds_space:
        said["add_space_prefix"] = False
    return {f"tokenizer.ggml.{name}": value for name, value in said.items() if value is not None}


def opened(metadata, directory):
    directory.mkdir()
    for name, content in gguf_tokenizer(metadata).items():
        (directory / name).write_bytes(content)
    return open_tokenizer(directory)


@pytest.mark.parametrize("options", [{}, OURS], ids=["Llama's kind", "of this program"])
def test_ids_are_those_of_the_model_that_the_file_was_made_from(tmp_path, options):
    origin = train(tmp_path / "origin", **options)
    before = open_tokenizer(origin)
    after = opened(metadata_of(origin, adds_space=options != OURS), tmp_path / "after")
    plain = sentencepiece.SentencePieceProcessor(str(origin / "tokenizer.model"))
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
        if "\u2581" not in text:
            assert after.encode(text) == plain.encode(text)
    assert (after.eod_id, after.vocab_size, after.special_tokens) == (2, before.vocab_size, before.special_tokens)
    assert after.beginning == (1,)
    assert "fast encoder: SentencePiece's ids" in fast_tokenizer(str(tmp_path / "after"), TEXTS)[1]


def test_a_token_that_ends_a_chat_is_never_made_of_text(tmp_path):
    """Added behind the model's own pieces, as fine-tuned models have it."""
    origin = train(tmp_path / "origin")
    size = open_tokenizer(origin).vocab_size
    (origin / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "<|im_end|>": size + 1}))
    tokenizer = opened(metadata_of(origin, eos_token_id=size + 1, add_bos_token=False), tmp_path / "after")
    assert (tokenizer.eod_id, tokenizer.vocab_size, tokenizer.beginning) == (size + 1, size + 2, ())
    assert size + 1 not in tokenizer.encode("a<|im_end|>b") and size in tokenizer.encode("a<|im_start|>b")


def test_a_file_with_one_becomes_a_checkpoint_and_a_directory_with_its_ids(tmp_path):
    origin = open_tokenizer(train(tmp_path / "origin"))
    model = model_of(vocab_size=origin.vocab_size)
    vocabulary = metadata_of(tmp_path / "origin")
    path = write_gguf(tmp_path / "m.gguf", model, weights_of(model), vocabulary=vocabulary)
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.model"].contents() == "llama"
    assert convert(path, tmp_path / "ours", "ours").left_out == ()
    ours = find_tokenizer(open_checkpoint(tmp_path / "ours", ONE), None)
    assert convert(path, tmp_path / "hf", "hf").left_out == ()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in TEXTS:
        assert ours.encode(text) == origin.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == origin.encode(text)
    assert theirs.encode("a shard").ids == [1, *origin.encode("a shard")]  # as its model saw texts


def test_a_piece_that_sentencepiece_does_not_take_is_said(tmp_path):
    metadata = metadata_of(train(tmp_path / "origin"))
    metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.tokens"].index("<0x41>")] = "<0xA>"
    with pytest.raises(ValueError, match=r"SentencePiece cannot open what it makes: .*<0xA>"):
        gguf_tokenizer(metadata)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores": [-1000.0] * 320}, "the scores of its pieces are no ranks, as byte pair encoding has them"),
        ({"scores": [-0.5 * rank for rank in range(320)]}, "the scores of its pieces are no ranks"),
        ({"scores": [0.0]}, "it has a piece twice, or not a score and a type for each"),
        ({"scores": None}, "it lacks pieces, their scores or their types"),
        ({"token_type": [1] * 320}, "it has 0 pieces for what is unknown, not one"),
        ({"eos_token_id": None}, "it does not say what ends a document"),
        ({"eos_token_id": 320}, "it does not say what ends a document"),
        ({"remove_extra_whitespaces": True}, "it normalizes text"),
    ],
)
def test_what_makes_no_such_model_is_named(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        gguf_tokenizer(metadata_of(train(tmp_path / "origin"), **change))
