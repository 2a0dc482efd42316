"""show_mask.py as a user calls it: what stands in brackets is what was said, to the end of the turn."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import show_mask
from support.chat_templates import PLAIN, tokenizer_directory
from support.checkpoints import untrained
from support.layouts import Layout
from support.text import train_small_tokenizer

from megatron_lite.checkpoint import save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import run_command

TALK = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "one\n\ntwo <|im_end|> \x1b[31m"},
    {"role": "user", "content": "and"}, {"role": "assistant", "content": "caf\u00e9"},
]  # fmt: skip
SHOWN = """\
<|im_start|>user⏎
hi<|im_end|>⏎
<|im_start|>assistant⏎
⟦one⏎⟧
⟦⏎⟧
⟦two <|im_end|> \\x1b[31m⟧⟦<|im_end|>⟧⏎
<|im_start|>user⏎
and<|im_end|>⏎
<|im_start|>assistant⏎
⟦caf\u00e9⟧⟦<|im_end|>⟧
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return tokenizer_directory(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return train_small_tokenizer(tmp_path_factory.mktemp("small"))


@pytest.fixture
def shown(monkeypatch, capsys):
    """Its exit code, and what it prints on either stream."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["show_mask.py", *map(str, arguments)])
        code = 0
        try:
            run_command(show_mask.main)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return call


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_and_their_ends_stand_in_brackets_and_text_is_apart_from_the_control_token_it_spells(
    tmp_path, tokenizer, shown
):
    path = written(tmp_path / "rows.jsonl", {"messages": TALK}, {"messages": TALK})
    code, out, err = shown(path, "--tokenizer", tokenizer)
    assert (code, err) == (0, "")
    legend, _, counts, _, text = out.split("\n", 4)
    assert legend == "⟦trained⟧ not trained    ⏎ a line end   chat template: the tokenizer's own"
    assert counts.startswith(f"{path} line 1: ")
    assert counts.endswith(" trained; end-of-turn tokens trained: 2, assistant turns to train: 2")
    assert text == SHOWN


def test_colours_say_the_same_as_brackets(tmp_path, tokenizer, shown):
    path = written(tmp_path / "rows.jsonl", {"messages": TALK})
    code, out, _ = shown(path, "--tokenizer", tokenizer, "--color", "always")
    assert code == 0 and "⟦" not in out
    green, end, plain = "\x1b[32m", "\x1b[1;30;42m", "\x1b[0m"
    assert f"\n{green}two <|im_end|> \\x1b[31m{plain}{end}<|im_end|>{plain}\x1b[2m⏎{plain}\n" in out
    assert f"{green}caf\u00e9{plain}{end}<|im_end|>{plain}\n" in out
    for line in out.splitlines():
        assert line.count("\x1b[0m") * 2 == line.count("\x1b["), line


def test_as_many_rows_are_shown_as_asked_for_and_a_bad_one_is_named_with_exit_code_3(tmp_path, tokenizer, shown):
    path = written(tmp_path / "rows.jsonl", {"messages": TALK}, {"messages": TALK[1:]}, {"messages": TALK[2:]}, {})
    code, out, err = shown(path, "--tokenizer", tokenizer, "--rows", 3)
    assert code == 3 and err == f"error: {path}: 1 of the rows shown cannot be trained on\n"
    assert f"{path} line 2: the assistant speaks first" in out
    assert f"{path} line 3: " in out and "line 4" not in out
    assert shown(path, "--tokenizer", tokenizer, "--rows", 1)[0] == 0


def test_both_answers_of_a_pair_are_shown(tmp_path, tokenizer, shown):
    path = written(tmp_path / "rows.jsonl", {"prompt": "a?", "chosen": "b", "rejected": "c d"})
    code, out, _ = shown(path, "--tokenizer", tokenizer, "--pairs")
    assert code == 0
    chosen, rejected = out.split(f"{path} line 1, ")[1:]
    assert chosen.startswith("chosen: ") and "\na?⟦b⟧⟦<|im_end|>⟧\n" in chosen
    assert rejected.startswith("rejected: ") and "\na?⟦c d⟧⟦<|im_end|>⟧\n" in rejected
    assert "end-of-turn tokens trained: 1, assistant turns to train: 1\n" in rejected


def test_a_template_and_a_system_prompt_may_be_given(tmp_path, tokenizer, shown):
    (tmp_path / "zephyr.jinja").write_text(PLAIN["zephyr"])
    path = written(tmp_path / "rows.jsonl", {"messages": TALK[2:]})
    how = ("--chat-template", tmp_path / "zephyr.jinja", "--system-prompt", "be brief")
    code, out, _ = shown(path, "--tokenizer", tokenizer, *how)
    assert code == 0 and f"chat template: {tmp_path}/zephyr.jinja\n" in out
    assert out.endswith("\n<|system|>⏎\nbe brief</s>⏎\n<|user|>⏎\nand</s>⏎\n<|assistant|>⏎\n⟦caf\u00e9⟧⟦</s>⟧\n")


def test_a_run_a_checkpoint_and_a_file_give_their_tokenizer_and_the_built_in_template(tmp_path, small, shown):
    made = SentencePieceTokenizer(small)
    save(tmp_path / "run" / "checkpoints", untrained(Layout(layers=1), vocab_size=500), 1, 1, tokenizer=made)
    path = written(tmp_path / "rows.jsonl", {"messages": TALK[2:]})
    for origin in (small, tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_1"):
        code, out, err = shown(path, "--tokenizer", origin)
        assert (code, err) == (0, "")
        assert "chat template: the built-in one\n" in out
        assert out.endswith("\n<s>user⏎\nand</s><s>assistant⏎\n⟦caf\u00e9⟧⟦</s>⟧\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--rows", "0"), 2, "--rows 0 is below 1"),
        (("--chat-template", "none.jinja"), 2, "chat_template none.jinja: No such file or directory"),
        (("--tokenizer", "none"), 3, "tokenizer none: No such file or directory"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, tokenizer, shown, arguments, code, said):
    path = written(tmp_path / "rows.jsonl", {"messages": TALK})
    found, _, err = shown(path, "--tokenizer", tokenizer, *arguments)
    assert found == code and said in err.splitlines()[-1]
