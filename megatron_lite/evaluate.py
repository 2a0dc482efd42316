"""Downstream benchmarks: `[torchrun ...] -m megatron_lite.evaluate CHECKPOINT --tasks battery [parallel.tensor=2 ...]`.

Tasks are those of lm-evaluation-harness, with its prompts and its metrics: single ones, its groups, `battery` and its
parts, and what task files in --include-path add. A killed evaluation goes on from its --cache.
"""

import argparse
from pathlib import Path

from megatron_lite.errors import UsageError, run_command
from megatron_lite.evaluation.run import Asked, as_json, evaluate
from megatron_lite.evaluation.table import table
from megatron_lite.exchange.origin import identity_of
from megatron_lite.files import check_output, publish_output
from megatron_lite.inference.arguments import model_command_line, parse_model
from megatron_lite.inference.opening import Opened, opened_model
from megatron_lite.inference.text import chat_template_of


def command_line() -> argparse.ArgumentParser:
    parser = model_command_line("evaluate", __doc__)
    add = parser.add_argument
    add("--tasks", required=True, metavar="A,B", help="names of tasks and groups, with commas between them")
    add(
        "--include-path", metavar="DIR", type=Path, help="a folder with task files, or documents of the battery's tasks"
    )
    add("--limit", type=int, metavar="N", help="documents of each task, the first ones (default: all)")
    add("--num-fewshot", type=int, metavar="N", help="examples before each document (default: as each task says)")
    add("--apply-chat-template", action="store_true", help="ask as a user would: --chat-template, or the tokenizer's")
    add("--allow-code-execution", action="store_true", help="for tasks that execute code which the model writes")
    add("--cache", metavar="FILE", type=Path, help="answers that are kept, and need not be computed again")
    add("--output", metavar="F.json", type=Path, help="for lm-eval's results; the table is printed all the same")
    return parser


def main() -> None:
    arguments, model, template = parse_model(command_line())
    if arguments.output is not None:
        check_output(arguments.output)
    if template is not None and not arguments.apply_chat_template:
        raise UsageError("--chat-template is for --apply-chat-template, which is not given")
    asked_of(arguments, None, None)  # what is wrong with the line is said before a model is read
    with opened_model(model) as opened:
        first = opened.model.mesh.rank == 0
        chat = chat_template_of(opened.tokenizer, template).source if arguments.apply_chat_template else None
        identity = identity_in(opened) if first and arguments.cache is not None else None
        asked = asked_of(arguments, chat, identity if first else "that of rank 0")
        results = evaluate(opened.model, opened.tokenizer, opened.words, asked)
        if results is not None:
            print(table(results))
            if arguments.output is not None:
                assert opened.origin is not None  # it was read from a path
                publish_output(arguments.output, as_json(results, opened.origin.path.resolve()))


def asked_of(arguments: argparse.Namespace, chat: str | None, identity: str | None) -> Asked:
    """Raises UsageError for values out of range."""
    return Asked(
        tuple(name.strip() for name in arguments.tasks.split(",")), arguments.include_path, arguments.limit,
        arguments.num_fewshot, arguments.allow_code_execution, chat, None if identity is None else arguments.cache,
        identity,
    )  # fmt: skip


def identity_in(opened: Opened) -> str:
    """All that an answer depends on beside what is asked."""
    assert opened.origin is not None  # it was read from a path
    return f"{identity_of(opened.origin)} {opened.model.dtype} {opened.tokenizer.sha256}"


if __name__ == "__main__":
    run_command(main)
