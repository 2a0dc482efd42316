import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from support.text import random_texts, write_jsonl

from megatron_lite.data.tokenizer_training import (
    SPECIAL_PIECES,
    SPECIAL_TOKENS,
    Sampling,
    cut,
    sample_chunks,
    train_tokenizer,
)
from megatron_lite.errors import DataError, UsageError

TOOL = Path(__file__).parents[2] / "tools" / "train_tokenizer.py"


@pytest.fixture
def corpus(tmp_path):
    return str(write_jsonl(tmp_path / "corpus.jsonl", random_texts(0, 300)))


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path, corpus):
    for name in "ab":
        train_tokenizer([corpus], str(tmp_path / name), 400, Sampling(sample_bytes=20_000))
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_special_pieces_come_first_then_the_bytes(tmp_path, corpus):
    train_tokenizer([corpus], str(tmp_path / "t"), 400, Sampling())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    assert len(pieces) == 400
    assert pieces[:4] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert tuple(pieces[: len(SPECIAL_TOKENS)]) == SPECIAL_TOKENS
    assert pieces[len(SPECIAL_TOKENS) : SPECIAL_PIECES] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert all(processor.is_control(i) for i in range(1, len(SPECIAL_TOKENS)))


def test_newlines_and_runs_of_spaces_are_learned(tmp_path):
    code = "def f(x):\n    if x:\n        return x\n\n"
    corpus = write_jsonl(tmp_path / "c.jsonl", [code * 20] * 20)
    trained = train_tokenizer([str(corpus)], str(tmp_path / "t"), 350, Sampling())
    assert len(trained.tokenizer.encode("    " * 2)) == 1
    assert len(trained.tokenizer.encode("\n\n")) == 1


def test_text_beside_the_trainers_own_marks_is_learned_too(tmp_path):
    texts = [f"\u2585 \u2581 \0 {text}" for text in random_texts(0, 200)]
    trained = train_tokenizer([str(write_jsonl(tmp_path / "c.jsonl", texts))], str(tmp_path / "t"), 400, Sampling())
    assert len(trained.tokenizer.encode("the model reads")) < 10


def test_a_sample_keeps_to_its_size_and_follows_its_seed(corpus):
    whole, _ = sample_chunks([corpus], Sampling())
    samples = {seed: sample_chunks([corpus], Sampling(sample_bytes=10_000, seed=seed))[0] for seed in (1, 2)}
    for sample in samples.values():
        assert 9_000 < sum(len(chunk.encode()) for chunk in sample) <= 10_000
        places = [whole.index(chunk) for chunk in sample]
        assert places == sorted(places)
        # spread over the corpus, not its head
        assert min(places) < len(whole) / 4 < 3 * len(whole) / 4 < max(places)
    assert samples[1] != samples[2]


@pytest.mark.parametrize("text", ["", "a", "ab\n" * 50, "x" * 100, "\n" * 64, "ab\ncdefghij" * 9])
def test_the_pieces_of_a_text_put_together_are_the_text(text):
    pieces = list(cut(text, 16))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 16 for piece in pieces)


def test_pieces_end_with_lines_where_they_can():
    assert list(cut("abcdefghij\nklmnop\nqrs", 16)) == ["abcdefghij\n", "klmnop\nqrs"]


def test_a_vocabulary_without_room_for_text_is_refused(tmp_path, corpus):
    with pytest.raises(UsageError, match=f"{SPECIAL_PIECES} pieces are special"):
        train_tokenizer([corpus], str(tmp_path / "t"), SPECIAL_PIECES, Sampling())


def test_too_little_text_for_the_vocabulary_is_refused_and_leaves_no_file(tmp_path, corpus):
    with pytest.raises(DataError, match="5000"):
        train_tokenizer([corpus], str(tmp_path / "t"), 5000, Sampling())
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_no_text_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text to learn from"):
        train_tokenizer([str(write_jsonl(tmp_path / "c.jsonl", [""]))], str(tmp_path / "t"), 400, Sampling())


def test_a_malformed_line_is_named_or_counted(tmp_path, corpus):
    Path(corpus).write_text(Path(corpus).read_text() + "{\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl:301: no valid JSON"):
        sample_chunks([corpus], Sampling())
    assert sample_chunks([corpus], Sampling(skip_malformed=True))[1] == 1


def test_the_command_writes_a_model_and_exits_with_the_right_codes(tmp_path, corpus):
    def tool(*arguments):
        command = [sys.executable, TOOL, "--model-prefix", tmp_path / "m" / "t", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = tool("--input", corpus, "--vocab-size", 400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("400 pieces from ")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["t.model"]
    assert tool("--input", corpus, "--vocab-size", 100).returncode == 2
    assert tool("--input", corpus).returncode == 2
    assert tool("--input", tmp_path / "none", "--vocab-size", 400).returncode == 3
