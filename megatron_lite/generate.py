"""Continue prompts: `[torchrun ...] -m megatron_lite.generate CHECKPOINT --prompt "..." [parallel.tensor=2 ...]`.

One prompt is printed with its continuation, as it is written. With --prompts, --output or log-probabilities answers are
lines of JSON in the prompts' order: prompt, completions: [{text, tokens, logprobs, finish_reason}].
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from megatron_lite.errors import UsageError, run_command
from megatron_lite.files import check_output, publish_output
from megatron_lite.inference.arguments import Options, command_line, parse
from megatron_lite.inference.engine import Engine, check_request, share_of
from megatron_lite.inference.generation import ROWS, gathered, sizes_for
from megatron_lite.inference.opening import Opened, opened_model
from megatron_lite.inference.requests import Addition, Request
from megatron_lite.inference.text import Prompt, answer_of, plain_prompt, read_prompts
from megatron_lite.progress import Progress


def parse_arguments() -> tuple[argparse.Namespace, Options]:
    parser = command_line("generate", __doc__, temperature=0.8, max_new_tokens=100)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help='what to continue; "" begins a document')
    prompts.add_argument(
        "--prompts", metavar="F.jsonl", type=Path, help='a line each: {"prompt": ..} or {"messages": ..}'
    )
    parser.add_argument("--output", metavar="G.jsonl", type=Path, help="for the answers; default: standard output")
    parser.add_argument(
        "-n", "--n", type=int, default=1, metavar="K",
        help="samples of each prompt (default: 1); after torchrun as -n, since it takes --n for an option of its own",
    )  # fmt: skip
    parser.add_argument("--logprobs", action="store_true", help="of each new token, at temperature 1")
    parser.add_argument("--top-logprobs", type=int, metavar="K", help="also ids and those of the K most likely tokens")
    parser.add_argument("--batch", type=int, default=ROWS, metavar="N", help=f"sequences at once (default: {ROWS})")
    arguments, options = parse(parser)
    check(arguments)
    return arguments, options


def check(arguments: argparse.Namespace) -> None:
    """Before anything is computed. Raises UsageError for what cannot be done."""
    if arguments.output is not None:
        check_output(arguments.output)
    if arguments.batch < 1:
        raise UsageError(f"--batch {arguments.batch}: must be 1 or more")
    if arguments.top_logprobs is not None and arguments.top_logprobs < 1:
        raise UsageError(f"--top-logprobs {arguments.top_logprobs}: must be 1 or more")
    if arguments.chat_template is not None and arguments.prompts is None:
        raise UsageError("--chat-template is for messages, which --prompts may hold: a --prompt is continued as it is")


def main() -> None:
    arguments, options = parse_arguments()
    wanted = arguments.top_logprobs or (0 if arguments.logprobs else None)
    with opened_model(options.asked) as opened:
        if arguments.prompts is None:
            prompts = [plain_prompt(arguments.prompt, opened.tokenizer)]
        else:
            prompts = read_prompts(arguments.prompts, opened.tokenizer, options.template)
        limits = options.limits_with(opened.tokenizer)
        requests = [
            Request(number, prompt.ids, limits, options.sampling, arguments.seed, arguments.n, wanted)
            for number, prompt in enumerate(prompts)
        ]
        check_requests(requests, prompts, opened)
        if arguments.prompts is None and arguments.output is None and wanted is None:
            show(requests[0], opened, arguments.batch)
            return
        lines = answer(requests, prompts, opened, arguments.batch)
        if opened.model.mesh.rank == 0:
            write(lines, arguments.output)


def check_requests(requests: Sequence[Request], prompts: Sequence[Prompt], opened: Opened) -> None:
    """All of them, on every rank, before any runs. Raises UsageError that says which one cannot."""
    for request, prompt in zip(requests, prompts, strict=True):
        try:
            check_request(request, opened.model)
        except UsageError as error:
            raise UsageError(f"{prompt.place}: {error}") from None


def show(request: Request, opened: Opened, rows: int) -> None:
    """One prompt with its continuation, as it is written; of more samples one after the other, when all are."""
    writes, decode = opened.model.mesh.rank == 0, opened.tokenizer.decode
    engine = Engine(opened.model, sizes_for([request], opened.model.longest, rows), decode)

    def say(text: str) -> None:
        if writes:
            sys.stdout.write(text)
            sys.stdout.flush()

    begin = decode(request.prompt)
    for one in share_of([request], opened.model.mesh):
        if one.n == 1:
            say(begin)
            engine.run([one], lambda addition: say(addition.text))
            say("\n")
        else:
            say("\n\n".join(begin + completion.text for completion in engine.run([one])[0]) + "\n")
    opened.words.exchange("", "generated")


def answer(requests: Sequence[Request], prompts: Sequence[Prompt], opened: Opened, rows: int) -> list[str]:
    """A line for each, in order, on rank 0."""
    mesh, model = opened.model.mesh, opened.model
    mine = share_of(requests, mesh)
    engine = Engine(model, sizes_for(mine, model.longest, rows), opened.tokenizer.decode)
    with Progress("answers", len(mine) * mine[0].n, unit="") if mine and mesh.rank == 0 else nullcontext() as progress:
        done = 0

        def count(addition: Addition) -> None:
            nonlocal done
            done += addition.finish is not None
            if progress is not None:
                progress.advance(done)

        found = engine.run(mine, count)
    lines = [answer_of(prompts[one.number], completions) for one, completions in zip(mine, found, strict=True)]
    opened.words.exchange("", "generated")  # a replica may wait long for another, longer than a message would
    replicas = gathered(lines, mesh)
    return [replicas[number % len(replicas)][number // len(replicas)] for number in range(len(requests))]


def write(lines: Sequence[str], output: Path | None) -> None:
    text = "".join(f"{line}\n" for line in lines)
    if output is None:
        sys.stdout.write(text)
    else:
        publish_output(output, text)


if __name__ == "__main__":
    run_command(main)
