import gzip
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import preprocess_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import zstandard
from support.checkpoints import untrained
from support.killing import InlinePool
from support.layouts import Layout
from support.text import random_texts, train_byte_level, train_small_tokenizer, write_jsonl

from megatron_lite.checkpoint import save
from megatron_lite.data import preprocess as preprocess_module
from megatron_lite.data.encode import Settings
from megatron_lite.data.fast_tokenizer import FastTokenizer
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.preprocess import preprocess
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError, run_command
from megatron_lite.workers import worker_pool

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
TEXTS = [*random_texts(1, 120), "", *random_texts(2, 120)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def one_worker_is_this_process(monkeypatch):
    """Processes take their time to start; two of them are two."""
    monkeypatch.setattr(
        preprocess_module, "worker_pool", lambda workers: InlinePool() if workers == 1 else worker_pool(workers)
    )


@pytest.fixture
def small_pieces(monkeypatch):
    """Dozens of pieces out of a small corpus."""
    monkeypatch.setattr(preprocess_module, "PIECE_BYTES", 500)


def run(tokenizer, inputs, prefix, **options):
    of_settings = {name: options.pop(name) for name in ("json_keys", "append_eod", "sentences") if name in options}
    settings = Settings(tokenizer.path, **of_settings)
    options = {"workers": 1, "skip_malformed": False, "say": lambda line: None} | options
    return preprocess([str(path) for path in inputs], str(prefix), settings, **options)


def written(prefix, key="text"):
    return [Path(f"{prefix}_{key}_document.{suffix}").read_bytes() for suffix in ("bin", "idx", "json")]


def tool(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_every_text_is_a_document_that_ends_with_eod_and_an_empty_one_has_no_sequence(tmp_path, tokenizer):
    report = run(tokenizer, [write_jsonl(tmp_path / "c.jsonl", TEXTS)], tmp_path / "out" / "c", append_eod=True)
    dataset = open_indexed(tmp_path / "out" / "c_text_document")
    documents = [[s.tolist() for s in dataset.document(i)] for i in range(dataset.document_count)]
    assert documents == [[[*tokenizer.encode(text), tokenizer.eod_id]] if text else [] for text in TEXTS]
    assert [tokenizer.decode(d[0]) if d else "" for d in documents] == TEXTS
    assert dataset.sidecar.tokenizer == tokenizer.identity
    assert (report.documents, report.tokens) == (len(TEXTS), len(dataset.tokens))
    assert report.text_bytes == sum(len(text.encode()) for text in TEXTS)


def test_without_append_eod_a_document_is_its_text_alone(tmp_path, tokenizer):
    run(tokenizer, [write_jsonl(tmp_path / "c.jsonl", ["a shard"])], tmp_path / "c")
    assert open_indexed(tmp_path / "c_text_document").sequence(0).tolist() == tokenizer.encode("a shard")


def test_the_bytes_do_not_depend_on_the_workers(tmp_path, tokenizer, small_pieces):
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    for workers in (1, 3):
        run(tokenizer, [corpus], tmp_path / str(workers), workers=workers)
    assert written(tmp_path / "1") == written(tmp_path / "3")


def test_gz_zst_and_plain_input_give_the_same_bytes(tmp_path, tokenizer):
    plain = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    for suffix in ("", ".gz", ".zst"):
        run(tokenizer, [f"{plain}{suffix}"], tmp_path / f"out{suffix}")
    assert written(tmp_path / "out") == written(tmp_path / "out.gz") == written(tmp_path / "out.zst")


def test_a_tokenizer_json_binarizes_from_any_number_of_workers(tmp_path, small_pieces):
    tokenizer = open_tokenizer(train_byte_level(tmp_path / "model"))
    texts = [*TEXTS[:40], "a<|im_end|>b\u2581 caf\u00e9"]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    for workers in (1, 2):
        prefix = tmp_path / str(workers)
        report = run(tokenizer, [corpus], prefix, append_eod=True, workers=workers, say=(said := []).append)
    assert said == [f"tokenizing with the tokenizers library: {tmp_path / 'model'} is a tokenizer.json"]
    assert written(tmp_path / "1") == written(tmp_path / "2")
    dataset = open_indexed(tmp_path / "1_text_document")
    assert [dataset.sequence(i).tolist() for i in range(41)] == [[*tokenizer.encode(t), 2] for t in texts]
    assert tokenizer.decode(dataset.sequence(40)) == texts[-1]
    assert dataset.sidecar.tokenizer == tokenizer.identity
    assert report.lost_marks == 0


@pytest.mark.parametrize("train", [train_small_tokenizer, train_byte_level])
def test_a_run_gives_the_tokenizer_of_its_newest_complete_checkpoint(tmp_path, monkeypatch, train):
    (tmp_path / "origin").mkdir()
    tokenizer = open_tokenizer(train(tmp_path / "origin"))
    trainer = untrained(Layout(layers=1, dtype="float32"), vocab_size=500)
    for step in (9, 10):
        save(tmp_path / "run" / "checkpoints", trainer, step, step, tokenizer=tokenizer if step == 10 else None)
    (tmp_path / "run" / "checkpoints" / "step_11").mkdir()  # no index: it never was one
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS[:20])
    options = ["--input", corpus, "--output-prefix", tmp_path / "c", "--tokenizer-model", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py", *map(str, options)])
    preprocess_data.main()
    run(tokenizer, [corpus], tmp_path / "direct")
    assert written(tmp_path / "c") == written(tmp_path / "direct")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_10")
    with pytest.raises(DataError, match=r"run/checkpoints/step_9: the directory holds neither tokenizer\.json nor"):
        preprocess_data.main()


def test_sentencepieces_encoder_is_refused_for_a_tokenizer_json(tmp_path, monkeypatch, capsys):
    model = train_byte_level(tmp_path / "model")
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS[:2])
    options = ["--output-prefix", tmp_path / "c", "--tokenizer-model", model, "--encoder", "sentencepiece"]
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py", "--input", *map(str, [corpus, *options])])
    with pytest.raises(SystemExit) as ended:
        run_command(preprocess_data.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --encoder sentencepiece: {model} is a tokenizer.json, which SentencePiece does not read; "
        "--encoder auto takes it\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "model"]


def test_several_files_are_read_in_the_order_given(tmp_path, tokenizer):
    parts = [write_jsonl(tmp_path / f"{i}.jsonl", TEXTS[i::2]) for i in range(2)]
    run(tokenizer, parts[::-1], tmp_path / "parts")
    run(tokenizer, [write_jsonl(tmp_path / "c.jsonl", TEXTS[1::2] + TEXTS[0::2])], tmp_path / "whole")
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_every_key_gets_a_data_set(tmp_path, tokenizer):
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "the model", "title": "a shard"}) + "\n")
    run(tokenizer, [tmp_path / "c.jsonl"], tmp_path / "c", json_keys=("text", "title"))
    for key, text in (("text", "the model"), ("title", "a shard")):
        assert open_indexed(tmp_path / f"c_{key}_document").sequence(0).tolist() == tokenizer.encode(text)


def corpus_with_faults(path):
    """Lines 4, 8, ... of 100 are malformed."""
    good = [json.dumps({"text": text}) for text in random_texts(3, 100)]
    lines = ['{"text": ' if number % 4 == 0 else line for number, line in enumerate(good, 1)]
    path.write_text("\n".join(lines) + "\n")
    return [json.loads(line)["text"] for number, line in enumerate(lines, 1) if number % 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_malformed_line_ends_the_run_and_nothing_is_written(tmp_path, tokenizer, small_pieces, workers):
    corpus_with_faults(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match=r"c\.jsonl:4: no valid JSON"):
        run(tokenizer, [tmp_path / "c.jsonl"], tmp_path / "c", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_skipped_lines_are_counted_and_the_first_named(tmp_path, tokenizer, small_pieces):
    texts = corpus_with_faults(tmp_path / "c.jsonl")
    report = run(tokenizer, [tmp_path / "c.jsonl"], tmp_path / "c", skip_malformed=True)
    assert report.malformed == {"no valid JSON": 25}
    assert [example.split(":")[1] for example in report.examples] == ["4", "8", "12", "16", "20"]
    dataset = open_indexed(tmp_path / "c_text_document")
    assert [tokenizer.decode(dataset.sequence(i)) for i in range(dataset.sequence_count)] == texts


def test_the_marks_of_a_space_that_a_foreign_tokenizer_loses_are_counted(tmp_path):
    (tmp_path / "texts").write_text("the model reads a shard of text\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "texts", model_prefix=tmp_path / "m", vocab_size=30, model_type="bpe", minloglevel=2
    )
    report = run(
        SentencePieceTokenizer(tmp_path / "m.model"),
        [write_jsonl(tmp_path / "c.jsonl", ["a\u2581b", "\u2581"])],
        tmp_path / "c",
    )
    assert report.lost_marks == 2
    assert any("2 characters U+2581" in line for line in report.lines())


def test_parquet_gives_the_same_bytes(tmp_path, tokenizer, small_pieces):
    plain = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "c.parquet", row_group_size=50)
    run(tokenizer, [plain], tmp_path / "plain")
    run(tokenizer, [tmp_path / "c.parquet"], tmp_path / "parquet")
    assert written(tmp_path / "plain") == written(tmp_path / "parquet")


def test_a_sentence_is_a_sequence_and_the_last_one_ends_with_eod(tmp_path, tokenizer):
    texts = ["The model reads. It writes.\n\nA shard of text!", "  \n", "", "one"]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    run(tokenizer, [corpus], tmp_path / "bare", sentences="bare", append_eod=True)
    run(tokenizer, [corpus], tmp_path / "whole", sentences="whole", append_eod=True)
    eod = tokenizer.eod_id
    bare, whole = (open_indexed(tmp_path / f"{kind}_text_sentence") for kind in ("bare", "whole"))
    expected = ["The model reads.", "It writes.", "A shard of text!"]
    first = [sequence.tolist() for sequence in bare.document(0)]
    assert first == [*(tokenizer.encode(s) for s in expected[:2]), [*tokenizer.encode(expected[2]), eod]]
    assert [len(bare.document(i)) for i in range(4)] == [3, 0, 0, 1]
    assert [len(whole.document(i)) for i in range(4)] == [3, 1, 0, 1]
    assert ["".join(tokenizer.decode(s) for s in whole.document(i)) for i in range(4)] == texts


def test_the_line_on_the_tokenizer_says_when_sentencepiece_is_taken(tmp_path, tokenizer, monkeypatch):
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    run(tokenizer, [corpus], tmp_path / "fast", say=(said := []).append)
    assert "tokenizing with the fast encoder" in said[0]
    monkeypatch.setattr(FastTokenizer, "_encode", lambda self, text: np.array([5]))
    run(tokenizer, [corpus], tmp_path / "slow", say=(said := []).append)
    assert "tokenizing with SentencePiece: the fast encoder gives other ids" in said[0]
    assert written(tmp_path / "fast") == written(tmp_path / "slow")


def test_ids_that_differ_later_than_the_sample_end_the_run(tmp_path, tokenizer, monkeypatch):
    def wrong_later(self, text):
        return np.array(
            [5] if text.endswith("late\n") else SentencePieceTokenizer.encode(SentencePieceTokenizer(self.path), text)
        )

    monkeypatch.setattr(FastTokenizer, "_encode", wrong_later)
    monkeypatch.setattr("megatron_lite.data.sample.TEXTS", 1)
    monkeypatch.setattr(preprocess_module, "PIECE_BYTES", 1)
    corpus = write_jsonl(tmp_path / "c.jsonl", [*random_texts(1, 50), "too late\n"])
    with pytest.raises(DataError, match="the fast encoder gives other ids than SentencePiece for 'too late"):
        run(tokenizer, [corpus], tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet"])
def test_the_room_that_the_output_takes_is_foreseen_and_asked_for_first(tmp_path, tokenizer, monkeypatch, form):
    texts = random_texts(7, 3000)
    path = write_jsonl(tmp_path / "c.jsonl", texts)
    if form == "jsonl.gz":
        (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    if form == "parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    inputs = [tmp_path / f"c.{form}"]
    asked = []
    monkeypatch.setattr(preprocess_module, "check_free_disk", lambda prefix, size: asked.append(size))
    run(tokenizer, inputs, tmp_path / "c", workers=2)
    taken = sum((tmp_path / f"c_text_document.{suffix}").stat().st_size for suffix in ("bin", "idx"))
    assert taken < asked[0] < 2 * taken


def test_too_little_room_is_one_line_before_anything_is_written(tmp_path, tokenizer, monkeypatch):
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(UsageError, match=r"the output takes about 0\.000 GB, .* has 0\.000 GB free"):
        run(tokenizer, [corpus], tmp_path / "new" / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_bad_input_by_the_thousand_is_counted_by_name_and_the_good_among_it_kept(tmp_path, tokenizer):
    rng = np.random.default_rng(0)
    faults = {
        "no valid JSON, broken UTF-8": b'{"text": "\xff\xfe"}',
        "no valid JSON": b'{"text": "cut off',
        "blank line": b"   ",
        "no key 'text'": b'{"body": "a"}',
        "'text' holds a list, not a string": b'{"text": ["a"]}',
        "a JSON str, not an object": b'"text"',
    }
    lines, expected, counts = [], [], dict.fromkeys(faults, 0)
    for number in range(6000):
        if rng.random() < 0.5:
            kind = list(faults)[rng.integers(len(faults))]
            lines.append(faults[kind])
            counts[kind] += 1
        else:
            text = ["", "a\0b", "\0", f"line {number}", "\u2581"][number % 5]
            lines.append(json.dumps({"text": text}).encode())
            expected.append(text)
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "whole"}\n' * 50 + b'{"text": "cut')[:-12])
    report = run(tokenizer, [tmp_path / "c.jsonl", tmp_path / "cut.jsonl.gz"], tmp_path / "c", skip_malformed=True)
    assert report.malformed == counts | {"damaged file": 1}
    assert report.empty == expected.count("")
    dataset = open_indexed(tmp_path / "c_text_document")
    texts = ["".join(tokenizer.decode(s) for s in dataset.document(i)) for i in range(dataset.document_count)]
    assert texts[: len(expected)] == expected
    assert set(texts[len(expected) :]) == {"whole"}
    shown = "\n".join(report.lines())
    assert f"{sum(counts.values()) + 1} malformed records skipped:" in shown
    assert all(f"  {count} {kind}" in shown for kind, count in counts.items())


def test_a_file_that_is_cut_short_ends_the_run(tmp_path, tokenizer):
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(write_jsonl(tmp_path / "c", TEXTS).read_bytes())[:-200])
    with pytest.raises(DataError, match=r"c\.jsonl\.gz:\d+: damaged file: compressed data is damaged or cut short"):
        run(tokenizer, [tmp_path / "c.jsonl.gz"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_text_that_is_too_long_without_a_space_is_named(tmp_path, tokenizer, monkeypatch, small_pieces):
    monkeypatch.setattr("megatron_lite.data.tokenizer.LONGEST_BLOCK", 100_000)
    corpus = write_jsonl(tmp_path / "c.jsonl", ["a", "x" * 100_001, "b" * 100_000])
    report = run(tokenizer, [corpus], tmp_path / "c", skip_malformed=True)
    assert report.malformed == {"too long without a space": 1}
    assert open_indexed(tmp_path / "c_text_document").document_count == 2
    with pytest.raises(DataError, match=r"c\.jsonl:2: too long without a space: 100001 characters"):
        run(tokenizer, [corpus], tmp_path / "c")


@pytest.mark.nightly
@pytest.mark.parametrize("compressed", [False, True])
def test_a_line_of_200_megabytes_is_one_document_in_bounded_memory(tmp_path, tokenizer, compressed):
    text = "".join(random_texts(3, 1000))
    text *= 200_000_000 // len(text)
    path = write_jsonl(tmp_path / "c.jsonl", ["a", text, "b"])
    if compressed:
        path = tmp_path / "c.jsonl.gz"
        path.write_bytes(gzip.compress((tmp_path / "c.jsonl").read_bytes(), 1))
    base = ["--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer.path, "--workers", 2]
    done = tool("--input", path, *base)
    assert done.returncode == 0, done.stderr
    dataset = open_indexed(tmp_path / "c_text_document")
    assert [tokenizer.decode(dataset.sequence(i)) == t for i, t in enumerate(["a", text, "b"])] == [True] * 3
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8e6  # KB, of the largest process


def test_the_command_reports_and_exits_with_the_right_codes(tmp_path, tokenizer):
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    base = ["--output-prefix", tmp_path / "c", "--tokenizer-model", tokenizer.path]
    done = tool("--input", corpus, *base, "--workers", 2, "--append-eod")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(TEXTS)} documents, ")
    run(tokenizer, [corpus], tmp_path / "direct", append_eod=True)
    assert written(tmp_path / "c") == written(tmp_path / "direct")

    corpus.write_text('{"text": 1}\n')
    failed = tool("--input", corpus, *base)
    assert failed.returncode == 3
    assert f"{corpus}:1: 'text' holds a int, not a string" in failed.stderr
    assert tool("--input", tmp_path / "none.jsonl", *base).returncode == 3
    assert tool("--input", corpus, *base, "--workers", 0).returncode == 2
    assert tool("--input", corpus, *base, "--on-error", "ignore").returncode == 2
