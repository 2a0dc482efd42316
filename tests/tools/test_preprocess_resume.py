"""A run of tools/preprocess_data.py that is killed, however often and wherever, ends with an unbroken one's bytes."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.killing import InlinePool, killed_at
from support.text import random_texts, train_small_tokenizer

from megatron_lite.data import preprocess as preprocess_module
from megatron_lite.data.encode import Settings
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.preprocess import preprocess
from megatron_lite.errors import DataError

SUFFIXES = ("bin", "idx", "json")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def inline(monkeypatch):
    """A dozen pieces, saved one by one, tokenized in this process."""
    monkeypatch.setattr(preprocess_module, "PIECE_BYTES", 1500)
    monkeypatch.setattr(preprocess_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(preprocess_module, "worker_pool", lambda workers: InlinePool())


def corpus(directory, count=40):
    """Two files, two keys, an empty text and a malformed line in each."""
    for name in "ab":
        lines = [json.dumps({"text": text, "title": text[:9]}) for text in [*random_texts(ord(name), count), ""]]
        lines.insert(count // 2, "{")
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return [str(directory / f"{name}.jsonl") for name in "ab"]


def run(inputs, prefix, tokenizer, said=None, **settings):
    settings = Settings(tokenizer, ("text", "title"), append_eod=True, **settings)
    say = [].append if said is None else said.append
    return preprocess(inputs, str(prefix), settings, workers=1, skip_malformed=True, say=say)


def written(prefix):
    return [Path(f"{prefix}_{key}_document.{s}").read_bytes() for key in ("text", "title") for s in SUFFIXES]


def kill_at_steps(directory, tokenizer, steps, kills):
    """For each step: one run killed there, others earlier, one that ends. Returns the last step there is to be killed
    at, None if the steps do not reach so far."""
    inputs = corpus(directory)
    report = run(inputs, directory / "unbroken", tokenizer)
    for step in steps:
        prefix = directory / f"killed{step}"
        killed = [killed_at(step // (kill + 1), lambda p=prefix: run(inputs, p, tokenizer)) for kill in range(kills)]
        assert run(inputs, prefix, tokenizer) == report
        assert written(prefix) == written(directory / "unbroken")
        assert not list(directory.glob("*.partial")) + list(directory.glob("*.journal"))
        if not killed[0]:
            return step - 1
    return None


def test_killed_at_a_step_to_the_disk_it_ends_with_the_same_bytes(tmp_path, tokenizer, inline):
    assert kill_at_steps(tmp_path, tokenizer, [17, 70, *range(85, 1000, 5)], 1) > 100


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [1, 3])
def test_killed_at_every_step_to_the_disk_it_ends_with_the_same_bytes(tmp_path, tokenizer, inline, kills):
    assert kill_at_steps(tmp_path, tokenizer, range(1000), kills) > 100


def test_what_was_tokenized_is_not_tokenized_again(tmp_path, tokenizer, inline, monkeypatch):
    inputs, said = corpus(tmp_path), []
    assert killed_at(60, lambda: run(inputs, tmp_path / "c", tokenizer))
    tokenized = []
    original = preprocess_module.encode
    monkeypatch.setattr(preprocess_module, "encode", lambda s, piece: tokenized.append(piece) or original(s, piece))
    run(inputs, tmp_path / "c", tokenizer, said)
    assert 0 < len(tokenized) <= 5  # of ten
    assert any("going on at" in line for line in said)


@pytest.mark.parametrize("change", ["input", "tokenizer", "settings"])
def test_a_journal_of_another_run_is_not_gone_on_from(tmp_path, tokenizer, inline, change):
    inputs, said, settings = corpus(tmp_path), [], {}
    assert killed_at(25, lambda: run(inputs, tmp_path / "c", tokenizer))
    if change == "input":
        Path(inputs[0]).write_text(Path(inputs[0]).read_text().replace("model", "MODEL"))
    if change == "tokenizer":
        tokenizer = str(train_small_tokenizer(tmp_path, 390))
    if change == "settings":
        settings = {"sentences": "whole"}
    run(inputs, tmp_path / "c", tokenizer, said, **settings)
    run(inputs, tmp_path / "unbroken", tokenizer, **settings)
    level = "sentence" if settings else "document"
    for suffix in SUFFIXES:
        name = f"text_{level}.{suffix}"
        assert (tmp_path / f"c_{name}").read_bytes() == (tmp_path / f"unbroken_{name}").read_bytes()
    assert not any("going on" in line for line in said)


def test_a_run_that_starts_anew_leaves_nothing_that_the_old_journal_could_take_for_its_own(tmp_path, tokenizer, inline):
    inputs = corpus(tmp_path)
    assert killed_at(25, lambda: run(inputs, tmp_path / "c", tokenizer))
    assert killed_at(1, lambda: run(inputs[::-1], tmp_path / "c", tokenizer))  # before its own first journal
    run(inputs, tmp_path / "c", tokenizer)
    run(inputs, tmp_path / "unbroken", tokenizer)
    assert written(tmp_path / "c") == written(tmp_path / "unbroken")


def test_the_data_set_of_an_earlier_run_stands_until_the_new_one_is_whole(tmp_path, tokenizer, inline):
    inputs = corpus(tmp_path)
    run(inputs[:1], tmp_path / "c", tokenizer)
    before = written(tmp_path / "c")
    assert killed_at(25, lambda: run(inputs, tmp_path / "c", tokenizer))
    assert written(tmp_path / "c") == before


def test_two_runs_to_the_same_place_are_refused(tmp_path, tokenizer, inline):
    inputs = corpus(tmp_path)
    with (
        IndexedDatasetWriter(tmp_path / "c_text_document", "uint16"),
        pytest.raises(DataError, match="being written by another process"),
    ):
        run(inputs, tmp_path / "c", tokenizer)


def test_input_that_changes_while_it_is_read_is_refused(tmp_path, tokenizer, inline, monkeypatch):
    inputs = corpus(tmp_path)
    original = preprocess_module.encode

    def encode(settings, piece):
        os.utime(inputs[1], (1, 1))
        return original(settings, piece)

    monkeypatch.setattr(preprocess_module, "encode", encode)
    with pytest.raises(DataError, match="the input changed while it was read"):
        run(inputs, tmp_path / "c", tokenizer)
    assert not list(tmp_path.glob("c*.bin"))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, tokenizer, inline, monkeypatch):
    inputs = corpus(tmp_path)
    original, calls = IndexedDatasetWriter.add_documents, []

    def add_documents(self, *arguments):
        calls.append(self)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(IndexedDatasetWriter, "add_documents", add_documents)
    with pytest.raises(DataError, match="no space left on the disk"):
        run(inputs, tmp_path / "c", tokenizer)
    said = []
    run(inputs, tmp_path / "c", tokenizer, said)
    run(inputs, tmp_path / "unbroken", tokenizer)
    assert any("going on at" in line for line in said)
    assert written(tmp_path / "c") == written(tmp_path / "unbroken")


DRIVER = """
import sys
from megatron_lite.data import preprocess
from megatron_lite.data.encode import Settings
if __name__ == "__main__":
    tokenizer, prefix, workers, piece_bytes, *inputs = sys.argv[1:]
    preprocess.PIECE_BYTES, preprocess.SAVE_SECONDS = int(piece_bytes), 0
    settings = Settings(tokenizer, ("text", "title"), append_eod=True)
    preprocess.preprocess(inputs, prefix, settings, workers=int(workers), skip_malformed=True)
"""


def kill_at_random_moments(directory, tokenizer, inputs, workers, kills, rng):
    """Start real processes and kill each after a while, `kills` times, then let one end. Returns how many went on."""
    started = time.monotonic()
    run(inputs, directory / "unbroken", tokenizer)
    seconds = time.monotonic() - started
    (directory / "driver.py").write_text(DRIVER)
    prefix = directory / f"killed{workers}"
    command = [sys.executable, "-u", directory / "driver.py", tokenizer, prefix, str(workers), "20000", *inputs]
    went_on = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        # From the start of its work on, so that Python's own start does not take every blow.
        assert "tokenizing with" in process.stdout.readline()
        time.sleep(rng.uniform(0, 1 + seconds))
        process.kill()
        went_on += "going on" in process.communicate()[0]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert written(prefix) == written(directory / "unbroken")
    assert not list(directory.glob("*.partial")) + list(directory.glob("*.journal"))
    return went_on


def test_worker_processes_and_all_killed_at_a_random_moment_it_ends_with_the_same_bytes(tmp_path, tokenizer):
    kill_at_random_moments(tmp_path, tokenizer, corpus(tmp_path, 300), 2, 1, random.Random(0))


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_thirty_times_at_random_moments_it_ends_with_the_same_bytes(tmp_path, tokenizer, workers):
    inputs = corpus(tmp_path, 10000)
    assert kill_at_random_moments(tmp_path, tokenizer, inputs, workers, 30, random.Random(workers)) > 5
    assert open_indexed(tmp_path / f"killed{workers}_text_document").document_count == 20002
