import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import zstandard
from support.text import random_texts, train_small_tokenizer, write_jsonl

from megatron_lite.data import preprocess as preprocess_module
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.preprocess import Settings, preprocess
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
TEXTS = [*random_texts(1, 120), "", *random_texts(2, 120)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def small_batches(monkeypatch):
    """Dozens of batches out of a small corpus."""
    monkeypatch.setattr(preprocess_module, "BATCH_BYTES", 500)


def run(tokenizer, inputs, prefix, **options):
    settings = Settings(tokenizer.path, options.pop("json_keys", ("text",)), options.pop("append_eod", False))
    options = {"workers": 1, "skip_malformed": False} | options
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


def test_the_bytes_do_not_depend_on_the_workers(tmp_path, tokenizer, small_batches):
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
def test_the_first_malformed_line_ends_the_run_and_nothing_is_written(tmp_path, tokenizer, small_batches, workers):
    corpus_with_faults(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match=r"c\.jsonl:4: no valid JSON"):
        run(tokenizer, [tmp_path / "c.jsonl"], tmp_path / "c", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_skipped_lines_are_counted_and_the_first_named(tmp_path, tokenizer, small_batches):
    texts = corpus_with_faults(tmp_path / "c.jsonl")
    report = run(tokenizer, [tmp_path / "c.jsonl"], tmp_path / "c", skip_malformed=True)
    assert report.malformed == 25
    assert [example.split(":")[1] for example in report.examples] == ["4", "8", "12", "16", "20"]
    dataset = open_indexed(tmp_path / "c_text_document")
    assert [tokenizer.decode(dataset.sequence(i)) for i in range(dataset.sequence_count)] == texts


def test_the_marks_of_a_space_that_a_foreign_tokenizer_loses_are_counted(tmp_path):
    (tmp_path / "texts").write_text("the model reads a shard of text\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "texts", model_prefix=tmp_path / "m", vocab_size=30, model_type="bpe", minloglevel=2
    )
    report = run(
        Tokenizer(tmp_path / "m.model"), [write_jsonl(tmp_path / "c.jsonl", ["a\u2581b", "\u2581"])], tmp_path / "c"
    )
    assert report.lost_marks == 2
    assert any("2 characters U+2581" in line for line in report.lines())


def test_a_run_that_is_killed_leaves_nothing_that_opens(tmp_path, tokenizer, monkeypatch, small_batches):
    corpus = write_jsonl(tmp_path / "c.jsonl", TEXTS)

    def interrupted(*_):
        yield preprocess_module.encode(Settings(tokenizer.path), next(preprocess_module.read_batches([corpus], 100)))
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess_module, "map_in_order", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, [corpus], tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_workers_end_with_a_parent_that_is_killed():
    # Workers inherit the standard output: it comes to its end when the last of them is gone.
    script = (
        "import multiprocessing, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from megatron_lite.data.preprocess import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), initializer=end_with_parent)\n"
        "    [future.result() for future in [pool.submit(abs, -1) for _ in range(2)]]\n"
        "    print('started', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    process.kill()
    assert process.communicate(timeout=60) == (b"", None)


def test_no_more_batches_are_held_than_asked_for():
    taken = []

    class Immediate:
        def submit(self, function, item):
            self.value = function(item)
            return self

        def result(self):
            return self.value

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    results = preprocess_module.map_in_order(Immediate(), lambda i: i, items(), 3)
    next(results)
    assert len(taken) == 3


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
