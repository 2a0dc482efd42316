import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.generation import ONE, loaded
from support.layouts import Layout, build_trainer
from support.text import train_small_tokenizer

from megatron_lite import generate
from megatron_lite.checkpoint import Checkpoint, open_checkpoint, save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.text import complete, find_tokenizer


def save_run(run_dir: Path, tokenizer: SentencePieceTokenizer, vocab_size: int, named: str | None) -> None:
    """run_dir/checkpoints/step_1 and step_2 of an untrained model whose configuration names its tokenizer so."""
    config = Layout(layers=2).config(sequence_length=64)
    changes = {
        "model": config.model.model_copy(update={"vocab_size": vocab_size}),
        "data": config.data.model_copy(update={"tokenizer": named}),
    }
    trainer = build_trainer(Layout(layers=2), config=config.model_copy(update=changes))
    for step in (1, 2):
        save(run_dir / "checkpoints", trainer, step, 12 * step, tokenizer=tokenizer if named else None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """tokenizer/small.model, and runs/one whose configuration names it relatively."""
    base = tmp_path_factory.mktemp("base")
    (base / "tokenizer").mkdir()
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(base / "tokenizer"))
    save_run(base / "runs" / "one", tokenizer, tokenizer.vocab_size + 9, "tokenizer/small.model")
    return base


def call(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    generate.main()
    return capsys.readouterr().out


def test_the_command_prints_the_prompt_with_its_continuation(base, tmp_path):
    command = [
        sys.executable,
        "-m",
        "megatron_lite.generate",
        str(base / "runs" / "one"),
        "--prompt",
        "the model reads",
    ]
    done = subprocess.run([*command, "--max-new-tokens", "5"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the model reads") and len(done.stdout) > len("the model reads\n")
    assert done.stdout.endswith("\n")


def test_a_bad_checkpoint_is_one_line_and_exit_code_3(tmp_path):
    command = [sys.executable, "-m", "megatron_lite.generate", str(tmp_path / "none"), "--prompt", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"error: .*none holds no checkpoint: it must be .*\n", done.stderr)


def test_a_run_means_its_newest_checkpoint_and_a_step_itself(base, monkeypatch, capsys, tmp_path):
    shutil.copytree(base / "runs" / "one", tmp_path / "runs" / "one")
    os.truncate(tmp_path / "runs" / "one" / "checkpoints" / "step_2" / "index.json", 10)
    options = ("--prompt", "a shard", "--max-new-tokens", "3", "--tokenizer", str(base / "tokenizer" / "small.model"))
    step_1 = tmp_path / "runs" / "one" / "checkpoints" / "step_1"
    text = call(monkeypatch, capsys, str(step_1), *options)
    assert text.startswith("a shard")
    assert call(monkeypatch, capsys, str(tmp_path / "runs" / "one"), *options) == text  # step_2 is passed over
    with pytest.raises(DataError, match=r"step_2/index\.json is damaged"):
        call(monkeypatch, capsys, str(step_1.with_name("step_2")), *options)


def test_the_options_reach_the_sampler(base, monkeypatch, capsys):
    run = str(base / "runs" / "one")
    checkpoint = open_checkpoint(run, ONE)
    model, tokenizer = loaded(checkpoint), find_tokenizer(checkpoint, None)
    expected = complete(model, tokenizer, "bytes", Sampling(1.5, top_k=50, top_p=0.9), 8, seed=11)
    options = "--temperature 1.5 --top-k 50 --top-p 0.9 --max-new-tokens 8 --seed 11 --prompt bytes".split()
    assert call(monkeypatch, capsys, run, *options) == expected + "\n"
    way = Sampling(1.5, min_p=0.001, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2)
    whole, stop = (complete(model, tokenizer, "bytes", way, 30, 11, stops) for stops in ((), ("e",)))
    assert "e" in whole[5:] and stop == whole[: whole.index("e", 5)]
    options = (
        "--temperature 1.5 --min-p 0.001 --repetition-penalty 1.2 --presence-penalty 0.3 --frequency-penalty 0.2 "
        "--max-new-tokens 30 --seed 11 --prompt bytes --stop e --stop zzz"
    ).split()
    assert call(monkeypatch, capsys, run, *options) == stop + "\n"
    greedy = complete(model, tokenizer, "", Sampling(0), 8, seed=0)
    assert (
        call(monkeypatch, capsys, run, "--prompt", "", "--temperature", "0", "--max-new-tokens", "8") == greedy + "\n"
    )


def test_several_processes_are_refused(base, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UsageError, match="started on 8 processes: it runs on one"):
        call(monkeypatch, capsys, str(base / "runs" / "one"), "--prompt", "x")


def test_another_tokenizer_is_refused(base, tmp_path):
    other = train_small_tokenizer(tmp_path, vocab_size=390)
    with pytest.raises(DataError, match=r"small.model has sha256 .*was trained with .*small.model"):
        find_tokenizer(open_checkpoint(base / "runs" / "one", ONE), str(other))


def test_the_tokenizer_of_a_checkpoint_that_carries_none_is_where_the_run_had_it(base, monkeypatch):
    carried = find_tokenizer(checkpoint := open_checkpoint(base / "runs" / "one", ONE), None)
    assert carried.path == str(checkpoint.path)
    monkeypatch.setattr(Checkpoint, "tokenizer", None)
    recorded = find_tokenizer(checkpoint, None)
    assert (recorded.path, recorded.identity) == (str(base / "tokenizer" / "small.model"), carried.identity)


def test_a_tokenizer_that_is_gone_or_was_never_named_is_asked_for(base, tmp_path, monkeypatch):
    shutil.copytree(base / "runs", tmp_path / "runs")
    find_tokenizer(open_checkpoint(tmp_path / "runs" / "one", ONE), None)  # it is carried
    monkeypatch.setattr(Checkpoint, "tokenizer", None)
    with pytest.raises(DataError, match=r"tokenizer/small.model .* is neither here nor at or above .*--tokenizer"):
        find_tokenizer(open_checkpoint(tmp_path / "runs" / "one", ONE), None)
    tokenizer = SentencePieceTokenizer(base / "tokenizer" / "small.model")
    save_run(tmp_path / "bare", tokenizer, tokenizer.vocab_size, None)
    with pytest.raises(UsageError, match=r"without data.tokenizer: give its tokenizer with --tokenizer"):
        find_tokenizer(open_checkpoint(tmp_path / "bare", ONE), None)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(base, tmp_path):
    tokenizer = SentencePieceTokenizer(base / "tokenizer" / "small.model")
    save_run(tmp_path / "small", tokenizer, 100, None)
    with pytest.raises(DataError, match=rf"has {tokenizer.vocab_size} tokens, .* knows 100"):
        find_tokenizer(open_checkpoint(tmp_path / "small", ONE), tokenizer.path)
