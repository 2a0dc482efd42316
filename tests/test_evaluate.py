"""The command: what is wrong with its line is said before a model is read."""

import sys
from typing import cast

import pytest
from support.asking import build_to_ask
from support.layouts import Layout

from megatron_lite import evaluate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError
from megatron_lite.evaluation import run
from megatron_lite.evaluation.run import Asked
from megatron_lite.parallel.words import Words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", ""], "--tasks: must name a task or more"),
        (["--tasks", "a,,b"], "--tasks: must name a task or more"),
        (["--tasks", "a", "--limit", "0"], "--limit 0: must be 1 or more"),
        (["--tasks", "a", "--num-fewshot", "-1"], "--num-fewshot -1: must be 0 or more"),
        (["--tasks", "a", "--output", "/nowhere/at/all.json"], "--output /nowhere/at/all.json: must be a file"),
        (["--tasks", "a", "--chat-template", __file__], "--chat-template is for --apply-chat-template"),
    ],
)
def test_a_line_that_cannot_be_done_is_refused_before_anything_is_read(monkeypatch, options, said):
    monkeypatch.setattr(sys, "argv", ["evaluate", "no such checkpoint", *options])
    with pytest.raises(UsageError, match=said):
        evaluate.main()


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"to evaluate takes lm-eval: install megatron_lite\[eval\]"):
        run.evaluate(build_to_ask(Layout()), cast(Tokenizer, None), Words.alone(), Asked(("a",)))
