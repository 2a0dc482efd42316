"""Serve a model over HTTP: `[torchrun ...] -m megatron_lite.serve CHECKPOINT [parallel.tensor=2 ...]`.

The API is OpenAI's: /v1/models, /v1/completions, /v1/chat/completions. GET / is a page to talk to the model, /health
and /metrics are for machines; with --compare people judge pairs of answers at /compare. SIGTERM ends it when running
requests are answered.
"""

import argparse
from functools import partial
from pathlib import Path

from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import UsageError, run_command
from megatron_lite.inference.arguments import model_command_line, parse_model
from megatron_lite.inference.generation import ROWS
from megatron_lite.inference.opening import opened_model
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.text import chat_template_of
from megatron_lite.serving.comparisons import Comparing, read_comparisons
from megatron_lite.serving.settings import Settings


def main() -> None:
    parser = model_command_line("serve", __doc__)
    add_options(parser)
    arguments, asked, template = parse_model(parser)
    settings = settings_of(arguments)
    check(arguments)
    comparing = comparing_of(arguments)
    try:
        from megatron_lite.serving.server import Served, listening, serve, sizes_of
    except ModuleNotFoundError as error:
        raise UsageError(f"serving needs the package {error.name}: pip install 'megatron_lite[serve]'") from None
    with opened_model(asked) as opened:
        sizes = sizes_of(opened, arguments.batch, int(arguments.cache_gib * 2**30))
        tokenizer = opened.tokenizer
        served = Served(opened, template_of(tokenizer, template), limits_of(tokenizer), sizes)
        listen = partial(listening, arguments.host, arguments.port)
        serve(served, settings, listen, partial(say, settings.name), comparing)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="to listen on; default: this machine alone")
    add("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    add("--api-key", metavar="K", help="that requests must carry; default: none is asked for")
    add("--model-name", metavar="NAME", help="in the API; default: the last part of CHECKPOINT")
    add("--allow-origin", metavar="URL", action="append", default=[],
        help="whose pages may read answers in a browser; may be repeated")  # fmt: skip
    add("--batch", type=int, default=ROWS, metavar="N", help=f"sequences at once in a replica (default: {ROWS})")
    add("--queue", type=int, default=Settings.queue, metavar="N",
        help=f"sequences that may wait; more are answered 429 (default: {Settings.queue})")  # fmt: skip
    add("--cache-gib", type=float, default=1.0, metavar="G", help="for keys and values, of each rank (default: 1)")
    add("--max-prompt", type=int, metavar="N", help="tokens of a prompt; default: what the model was trained on")
    add("--max-output", type=int, metavar="N", help="tokens of an answer; default: what the model was trained on")
    add("--max-body", type=int, default=Settings.body, metavar="BYTES",
        help=f"of a request (default: {Settings.body})")  # fmt: skip
    add("--drain", type=float, default=Settings.drain_seconds, metavar="S",
        help=f"seconds for requests that run when it is told to end (default: {Settings.drain_seconds:g})")  # fmt: skip
    people = parser.add_argument_group("people who compare answers, on the page /compare").add_argument
    people("--compare", metavar="PROMPTS.jsonl", type=Path, help="rows with prompt or messages, and with answers: "
           "[.., ..], or chosen and rejected, or none, which the model then writes")  # fmt: skip
    people("--judgements", metavar="OUT.jsonl", type=Path, help="gets a row of the reward format for each preference")
    people("--criteria", default=",".join(Comparing.criteria), help=f"default: {','.join(Comparing.criteria)}")
    people("--compare-temperature", type=float, default=Comparing.temperature, metavar="T",
           help=f"of answers that the model writes (default: {Comparing.temperature:g})")  # fmt: skip
    people("--compare-tokens", type=int, metavar="N", help="of such an answer at most; default: as many as have room")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Raises UsageError."""
    name = arguments.model_name or Path(arguments.checkpoint).resolve().name
    return Settings(
        name, arguments.api_key, tuple(arguments.allow_origin), arguments.queue, arguments.max_prompt,
        arguments.max_output, arguments.max_body, drain_seconds=arguments.drain,
    )  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Before a model is opened. Raises UsageError."""
    if arguments.batch < 1:
        raise UsageError(f"--batch {arguments.batch}: must be 1 or more")
    if not 0 < arguments.cache_gib < 2**30:
        raise UsageError(f"--cache-gib {arguments.cache_gib}: must be above 0")
    if not 0 <= arguments.port < 2**16:
        raise UsageError(f"--port {arguments.port}: must be 0 to 65535")


def comparing_of(arguments: argparse.Namespace) -> Comparing | None:
    """None where nobody compares. Raises UsageError, and DataError for rows that nobody can judge."""
    prompts, judgements = arguments.compare, arguments.judgements
    if prompts is None and judgements is None:
        return None
    if prompts is None or judgements is None:
        given, missing = ("--judgements", "--compare") if prompts is None else ("--compare", "--judgements")
        raise UsageError(
            f"{given} needs {missing} too: one names what there is to judge, the other where judgements go"
        )
    if prompts.resolve() == judgements.resolve():
        raise UsageError(f"--judgements {judgements}: must be another file than --compare")
    criteria = tuple(one.strip() for one in arguments.criteria.split(","))
    way = (arguments.compare_temperature, arguments.compare_tokens)
    Comparing((), judgements, criteria, *way)  # what is wrong with options is said before a long file is read
    return Comparing(read_comparisons(prompts), judgements, criteria, *way)


def limits_of(tokenizer: Tokenizer) -> Limits:
    """Where every answer ends, but for its length, which each request says."""
    return Limits(1, eod=tokenizer.eod_id, vocab_size=tokenizer.vocab_size, stop_tokens=tokenizer.stop_ids)


def template_of(tokenizer: Tokenizer, given: str | None) -> ChatTemplate | None:
    """None where neither the user nor the tokenizer has one: such a model continues prompts alone."""
    if given is None and tokenizer.chat_template is None:
        return None
    return chat_template_of(tokenizer, given)


def say(name: str, address: str) -> None:
    print(f"serving {name} at {address}", flush=True)


if __name__ == "__main__":
    run_command(main)
