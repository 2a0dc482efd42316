"""Bytes as tokens, and tokens of several characters: what streams is what is decoded at once."""

from random import Random

import pytest
from support.text import train_small_tokenizer

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.inference.stopping import Detokenizer, StopStrings

TEXTS = [
    "the model", " two  spaces ", "na\u00efve \u4e2d\u6587 \U0001f600\U0001f44d\U0001f3fd", "\u2581 a\u0301\n\tb",
    "\ufffd x", "e",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def streamed(decode, tokens, prompt=()) -> tuple[list[str], str]:
    """(a piece for each token, what was left at the end)."""
    detokenizer = Detokenizer(decode, prompt)
    return [detokenizer.put(token) for token in tokens], detokenizer.finish()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text_at_once(tokenizer, text):
    tokens = tokenizer.encode(text)
    pieces, rest = streamed(tokenizer.decode, tokens)
    assert "".join(pieces) + rest == tokenizer.decode(tokens) == text


def test_random_tokens_stream_as_they_are_decoded_at_once(tokenizer):
    random = Random(0)
    for _ in range(200):
        tokens = [random.randrange(3, tokenizer.vocab_size) for _ in range(random.randint(1, 12))]
        pieces, rest = streamed(tokenizer.decode, tokens)
        assert "".join(pieces) + rest == tokenizer.decode(tokens).rstrip("\ufffd")


def test_text_continues_its_prompts(tokenizer):
    for text in TEXTS:
        tokens, prompt = tokenizer.encode(f" x{text}"), tokenizer.encode("reads \u4e2d")
        pieces, rest = streamed(tokenizer.decode, tokens, prompt)
        assert "reads \u4e2d" + "".join(pieces) + rest == tokenizer.decode([*prompt, *tokens])
    # The bytes of a character that the prompt only began are the text's own.
    assert streamed(decode_bytes, b"\xa9a", b"ab\xc3") == (["", "\ufffda"], "")


def decode_bytes(tokens) -> str:
    return bytes(tokens).decode(errors="replace")


def test_a_character_in_several_tokens_comes_whole_and_a_broken_one_at_the_end_not_at_all():
    assert streamed(decode_bytes, "a\u00e9\U0001f600".encode()) == (["a", "", "\u00e9", "", "", "", "\U0001f600"], "")
    assert streamed(decode_bytes, b"ab\xf0\x9f\x98") == (["a", "b", "", "", ""], "")
    assert streamed(decode_bytes, b"\xff\xc3a") == (["", "", "\ufffd\ufffda"], "")  # in the middle, as at once


def test_a_space_that_is_left_out_at_a_texts_beginning_alone():
    words = [" the", "", " model", " ", "s"]  # the second is a control token, without text

    def decode(tokens) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    for tokens in ([0, 2, 4], [0, 1, 2], [1, 0, 1, 1, 2, 4], [0, 3, 3, 2]):
        pieces, rest = streamed(decode, tokens)
        assert "".join(pieces) + rest == decode(tokens)
    assert streamed(decode, [2], [0]) == ([" model"], "")


def fed(strings, pieces) -> tuple[list[str], str | None]:
    stops = StopStrings(strings)
    given = [stops.put(piece) for piece in pieces]
    return [*given, stops.finish()], stops.found


@pytest.mark.parametrize(
    ("strings", "pieces", "out", "found"),
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", "", ""], "END"),
        (["END"], ["a E", "N", "T b"], ["a ", "", "ENT b", ""], None),
        (["END"], ["a EN"], ["a ", "EN"], None),
        (["\n\n"], ["x\n", "\n", "y"], ["x", "", "", ""], "\n\n"),
        (["aab"], ["aaa", "b"], ["a", "", ""], "aab"),
        (["abc", "b"], ["a", "b"], ["", "a", ""], "b"),  # complete first, though it begins later
        (["b", "abc"], ["abc"], ["a", ""], "b"),
        (["cd", "bcd"], ["abcd"], ["a", ""], "bcd"),  # the longest of those that end there
        (["x"], ["", "x", "more"], ["", "", "", ""], "x"),
        ([], ["a", "b"], ["a", "b", ""], None),
    ],
)
def test_what_could_be_a_stop_string_waits(strings, pieces, out, found):
    assert fed(strings, pieces) == (out, found)


def test_where_tokens_meet_makes_no_difference():
    random = Random(1)
    for _ in range(500):
        text = "".join(random.choices("ab", k=random.randint(1, 14)))
        strings = ["".join(random.choices("ab", k=random.randint(1, 5))) for _ in range(random.randint(1, 3))]
        ends = [(text.find(s) + len(s), -len(s), s) for s in strings if s in text]
        truth = (text, None) if not ends else (text[: min(ends)[0] + min(ends)[1]], min(ends)[2])
        for size in (1, 2, 3, 14):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            out, found = fed(strings, pieces)
            assert ("".join(out), found) == truth
