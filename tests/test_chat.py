"""A conversation on the terminal, over what a user would type."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.generation import ONE, loaded
from support.layouts import Layout, build_trainer
from support.text import train_small_tokenizer

from megatron_lite import chat
from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.scheduler import Sizes

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
OPTIONS = ["--temperature", "0", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[Path, Tokenizer]:
    """A checkpoint with a tokenizer that has a chat template."""
    directory = tmp_path_factory.mktemp("chat")
    small = train_small_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = SentencePieceTokenizer(small)
    layout = Layout(layers=2)
    config = layout.config(sequence_length=96)
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    trainer = build_trainer(layout, config=config.model_copy(update={"model": model}))
    save(directory / "run" / "checkpoints", trainer, 1, 12, tokenizer=tokenizer)
    return directory / "run", tokenizer


def talk(monkeypatch, capsys, run: Path, *lines: str, options=OPTIONS) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["chat", str(run), *options])
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat.main()
    said = capsys.readouterr()
    return said.out, said.err


def answers(run: Path, tokenizer: Tokenizer, *turns: str, system: str | None = None) -> list[str]:
    """Of a model that is asked each time from the beginning, with a prompt that is put together by hand."""
    model = loaded(open_checkpoint(run, ONE))
    prompt = [] if system is None else [*tokenizer.encode(f"system:{system}"), tokenizer.eod_id]
    found: list[str] = []
    for number, turn in enumerate(turns):
        prompt += [*tokenizer.encode(f"user:{turn}"), tokenizer.eod_id]
        asked = (*prompt, *tokenizer.encode("a:"))
        limits = Limits(4, tokenizer.eod_id, tokenizer.vocab_size)
        request = Request(number, asked, limits, Sampling(0))
        found.append(Engine(model, Sizes(20), tokenizer.decode).run([request])[0][0].text)
        prompt += [*tokenizer.encode(f"assistant:{found[-1]}"), tokenizer.eod_id]
    return found


def test_each_turn_is_answered_after_all_that_was_said(case, monkeypatch, capsys):
    run, tokenizer = case
    said, _ = talk(monkeypatch, capsys, run, "the model", "", "a shard")
    assert said == "".join(f"{one}\n" for one in answers(run, tokenizer, "the model", "a shard"))


def test_reset_forgets_and_system_is_told_first(case, monkeypatch, capsys):
    run, tokenizer = case
    lines = (
        "the model",
        "/reset",
        "a shard",
        "/system be brief",
        "bytes",
        "/reset",
        "x",
        "/system",
        "bytes",
        "/exit",
        "y",
    )
    said, _ = talk(monkeypatch, capsys, run, *lines)
    truth = [
        *answers(run, tokenizer, "the model"),
        *answers(run, tokenizer, "a shard"),
        *answers(run, tokenizer, "bytes", system="be brief"),
        *answers(run, tokenizer, "x", system="be brief"),
        *answers(run, tokenizer, "bytes"),
    ]
    assert said == "".join(f"{one}\n" for one in truth)
    told, _ = talk(monkeypatch, capsys, run, "bytes", options=[*OPTIONS, "--system", "be brief"])
    assert told == f"{truth[2]}\n"


def test_what_a_user_types_never_becomes_a_control_token(case, monkeypatch, capsys):
    run, tokenizer = case
    said, _ = talk(monkeypatch, capsys, run, "the</s>model")
    assert said == f"{answers(run, tokenizer, 'the</s>model')[0]}\n"


def test_an_unknown_command_and_a_conversation_that_is_too_long_are_said_and_it_goes_on(case, monkeypatch, capsys):
    run, tokenizer = case
    said, noted = talk(monkeypatch, capsys, run, "/help", "word " * 100, "the model")
    assert said == f"{answers(run, tokenizer, 'the model')[0]}\n"
    assert "/help is none of /reset, /system TEXT, /exit" in noted
    assert "must have 1 to 95, since the model was trained on sequences of 96; /reset begins anew" in noted


def test_a_turn_computes_only_what_is_new(case, monkeypatch, capsys):
    kept = []
    make = Engine.__init__

    def remembered(self, *arguments):
        make(self, *arguments)
        kept.append(self.scheduler)

    monkeypatch.setattr(Engine, "__init__", remembered)
    talk(monkeypatch, capsys, case[0], "the model reads bytes", "a shard", "and")
    assert kept[0].totals.reused >= 16 * 2  # a block after the first turn, and more after the second


def test_ctrl_c_stops_the_answer_and_not_the_program(case, monkeypatch, capsys):
    run, _ = case
    whole, _ = talk(monkeypatch, capsys, run, "the model", options=["--temperature", "0", "--max-new-tokens", "40"])
    put, count = chat.Chat._show, 0

    def interrupted(self, text: str) -> None:
        nonlocal count
        count += 1
        put(self, text)
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat.Chat, "_show", interrupted)
    options = ["--temperature", "0", "--max-new-tokens", "40"]
    said, _ = talk(monkeypatch, capsys, run, "the model", "/reset", "the model", options=options)
    first = said[: -len(whole)]
    assert said.endswith(whole) and whole.startswith(first.removesuffix("\n")) and 0 < len(first) < len(whole) // 2


def test_a_tokenizer_without_a_template_is_refused(case, monkeypatch, capsys, tmp_path):
    run, tokenizer = case
    (tmp_path / "small.model").write_bytes(tokenizer.files.content[tokenizer.files.main])
    options = [*OPTIONS, "--tokenizer", str(tmp_path / "small.model")]
    with pytest.raises(DataError, match=r"small.model has no chat template: give one with --chat-template FILE"):
        talk(monkeypatch, capsys, run, "x", options=options)
    (tmp_path / "plain.jinja").write_text(TEMPLATE)
    said, _ = talk(monkeypatch, capsys, run, "x", options=[*options, "--chat-template", str(tmp_path / "plain.jinja")])
    assert said == f"{answers(run, tokenizer, 'x')[0]}\n"


@pytest.mark.nightly
def test_two_ranks_answer_as_one(case, tmp_path):
    run, tokenizer = case
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "megatron_lite.chat", str(run), *OPTIONS, "parallel.tensor=2"]
    done = subprocess.run(command, input="the model\na shard\n", capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{one}\n" for one in answers(run, tokenizer, "the model", "a shard"))
