import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from support.text import random_texts, write_jsonl

from megatron_lite.data.text_sample import HELD_OUT, Sampling, cut, sample_text
from megatron_lite.data.tokenizer_training import SPECIAL_PIECES, SPECIAL_TOKENS, train_tokenizer
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
    whole = sample_text([corpus], Sampling()).chunks
    samples = {seed: sample_text([corpus], Sampling(sample_bytes=10_000, seed=seed)).chunks for seed in (1, 2)}
    for sample in samples.values():
        assert 9_000 < sum(len(chunk.encode()) for chunk in sample) <= 10_000
    places = [whole.index(chunk) for chunk in sample_text([corpus], Sampling(sample_bytes=10_000)).chunks]
    assert places == sorted(places)
    # spread over the corpus, not its head
    assert min(places) < len(whole) / 4 < 3 * len(whole) / 4 < max(places)
    assert samples[1] != samples[2]


def write_sources(directory, texts_of):
    """Documents of several sources by turns, their language half the time."""
    lines = [
        json.dumps({"text": text, "source": source} | ({"language": "de"} if number % 2 else {}))
        for number, texts in enumerate(zip(*texts_of.values(), strict=True))
        for source, text in zip(texts_of, texts, strict=True)
    ]
    (directory / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    return str(directory / "mixed.jsonl")


def test_one_document_of_fifty_is_held_out_whole_and_not_learned_from(tmp_path):
    texts = [f"{number} {text}" for number, text in enumerate(random_texts(3, 2000))]
    path = write_sources(tmp_path, {"web": texts[:1000], "code": texts[1000:]})
    sample = sample_text([path], Sampling())
    held_out = [document.text for document in sample.held_out]
    assert len(texts) / HELD_OUT / 2 < len(held_out) < 2 * len(texts) / HELD_OUT
    assert sorted(held_out + sample.chunks) == sorted(texts)
    assert {document.source for document in sample.held_out} == {"web", "code"}
    assert {document.language for document in sample.held_out} == {"", "de"}


def test_weights_are_shares_of_the_sample(tmp_path):
    texts = random_texts(4, 3000)
    path = write_sources(tmp_path, {"web": texts[:1000], "code": texts[1000:2000], "rare": texts[2000:]})
    weights = {"web": 6, "code": 3, "rare": 1}
    sample = sample_text([path], Sampling(sample_bytes=60_000, weights=weights))
    for source, weight in weights.items():
        assert sample.learned[source] == pytest.approx(6_000 * weight, rel=0.1)
    # A source that has less than its share gives all that is not held out.
    sample = sample_text([path], Sampling(sample_bytes=10_000_000, weights={"web": 1, "code": 1, "rare": 100}))
    assert 0.9 * sample.seen["rare"] < sample.learned["rare"] < sample.seen["rare"]


def test_a_weight_too_few_or_too_many_is_refused(tmp_path):
    path = write_sources(tmp_path, {"web": ["a"] * 9, "code": ["b"] * 9})
    with pytest.raises(UsageError, match="source 'code' has no weight; web have"):
        sample_text([path], Sampling(weights={"web": 1}))
    with pytest.raises(UsageError, match="no document is of source 'cod'; there are code, web"):
        sample_text([path], Sampling(weights={"web": 1, "code": 1, "cod": 1}))


def test_the_file_names_the_source_where_the_document_does_not(tmp_path):
    paths = [str(write_jsonl(tmp_path / name, random_texts(1, 20))) for name in ("web.001.jsonl", "web.002.jsonl")]
    pq.write_table(pa.table({"text": ["x"] * 9, "source": ["code"] * 4 + [None] * 5}), tmp_path / "rows.parquet")
    seen = sample_text([*paths, str(tmp_path / "rows.parquet")], Sampling()).seen
    assert seen == {"web": 2 * sum(len(text) for text in random_texts(1, 20)), "code": 4, "rows": 5}


def test_too_many_sources_are_refused(tmp_path):
    lines = [json.dumps({"text": "a", "source": str(number)}) for number in range(300)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="more than 256 sources by key 'source'"):
        sample_text([str(tmp_path / "c.jsonl")], Sampling())


def test_the_report_counts_the_held_out_texts_by_source_and_language(tmp_path):
    texts = random_texts(3, 1600)
    path = write_sources(tmp_path, {"web": texts[:800], "rare": ["\u732b" * 20] * 800})
    trained = train_tokenizer([path], str(tmp_path / "t"), 400, Sampling(sample_bytes=50_000))
    held_out = sample_text([path], Sampling(sample_bytes=50_000)).held_out
    report = json.loads((tmp_path / "t.report.json").read_text())
    for kind, name in (("sources", "web"), ("sources", "rare"), ("languages", "de")):
        its = [document.text for document in held_out if name in (document.source, document.language)]
        tokens = sum(len(trained.tokenizer.encode(text)) for text in its)
        row = report[kind][name]
        assert (row["documents"], row["bytes"]) == (len(its), sum(len(text.encode()) for text in its))
        assert (row["tokens"], row["bytes_per_token"]) == (tokens, row["bytes"] / tokens)
    assert report["sources"]["web"]["byte_tokens"] == 0
    assert report["whole"]["tokens"] == sum(row["tokens"] for row in report["sources"].values())
    assert report["sha256"] == trained.tokenizer.sha256
    table = list(trained.lines())
    assert [line.split()[0] for line in table[2:]] == ["rare", "web", "language", "all"]


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
        sample_text([corpus], Sampling())
    assert sample_text([corpus], Sampling(skip_malformed=True)).malformed == 1


def test_the_command_writes_a_model_and_exits_with_the_right_codes(tmp_path, corpus):
    def tool(*arguments):
        command = [sys.executable, TOOL, "--model-prefix", tmp_path / "m" / "t", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = tool("--input", corpus, "--vocab-size", 400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("400 pieces from ")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["t.model", "t.report.json"]
    assert "all " in done.stdout
    assert tool("--input", corpus, "--vocab-size", 400, "--weights", "corpus=2").returncode == 0
    assert tool("--input", corpus, "--vocab-size", 400, "--weights", "corpus=0").returncode == 2
    assert tool("--input", corpus, "--vocab-size", 400, "--weights", "web=1").returncode == 2
    assert tool("--input", corpus, "--vocab-size", 100).returncode == 2
    assert tool("--input", corpus).returncode == 2
    assert tool("--input", tmp_path / "none", "--vocab-size", 400).returncode == 3
