"""The command line that all who ask a model share."""

import argparse
from pathlib import Path

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError
from megatron_lite.inference.opening import Asked
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.sampling import Sampling

CHECKPOINT = "a step_N, a run (its newest), a Hugging Face directory or a GGUF file"


def add_model(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT, and how it is opened; `parse` takes keys of its layout among the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*",
        help="of the layout and the kernels, as parallel.tensor=2; replicas take what processes are left",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float64"), help="to compute in; default: what it was trained in"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what the node has")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one that the checkpoint carries")
    parser.add_argument("--chat-template", metavar="FILE", type=Path, help="Jinja; default: the tokenizer's")


def add_sampling(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int) -> None:
    """How tokens are drawn, and when an answer ends."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, metavar="N",
        help=f"fewer at a document's end or the trained length (default: {max_new_tokens})",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 takes the likeliest (default: {temperature})"
    )
    parser.add_argument("--top-k", type=int, help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that have probability P together")
    parser.add_argument("--min-p", type=float, help="draw from tokens with this share of the likeliest's probability")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1 against what was written already"
    )
    parser.add_argument("--presence-penalty", type=float, default=0.0, help="subtracted once from logits of new tokens")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="subtracted for each time they were drawn")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    parser.add_argument("--seed", type=int, default=0)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Options may stand between CHECKPOINT and keys."""
    return parser.parse_intermixed_args()


def asked_of(arguments: argparse.Namespace) -> Asked:
    return Asked(
        arguments.checkpoint, tuple(arguments.overrides), arguments.dtype, arguments.device, arguments.tokenizer
    )


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """Raises UsageError for a value out of range."""
    return Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p, arguments.repetition_penalty,
        arguments.presence_penalty, arguments.frequency_penalty,
    )  # fmt: skip


def limits_of(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Limits:
    """Raises UsageError for a value out of range."""
    return Limits(
        arguments.max_new_tokens, tokenizer.eod_id, tokenizer.vocab_size, tokenizer.stop_ids, tuple(arguments.stop)
    )


def template_of(arguments: argparse.Namespace) -> str | None:
    """The text of --chat-template. Raises DataError for a file that cannot be read."""
    if arguments.chat_template is None:
        return None
    try:
        return arguments.chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--chat-template {arguments.chat_template}: {error}") from None
