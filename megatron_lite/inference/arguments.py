"""The command line that all who ask a model share."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError
from megatron_lite.inference.opening import Asked
from megatron_lite.inference.requests import Limits
from megatron_lite.inference.sampling import Sampling


@dataclass(frozen=True)
class Options:
    """What it says: of the model, of how tokens are drawn, of when an answer ends, and the chat template's text."""

    asked: Asked
    sampling: Sampling
    limits: Limits
    template: str | None

    def limits_with(self, tokenizer: Tokenizer) -> Limits:
        """An answer also ends where the tokenizer says so."""
        stops = self.limits.stop_tokens | tokenizer.stop_ids
        return replace(self.limits, eod=tokenizer.eod_id, vocab_size=tokenizer.vocab_size, stop_tokens=stops)


def command_line(name: str, description: str, temperature: float, max_new_tokens: int) -> argparse.ArgumentParser:
    """A parser of a model and of how it writes, to which a command adds its own options."""
    parser = model_command_line(name, description)
    _add_sampling(parser, temperature, max_new_tokens)
    return parser


def model_command_line(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of CHECKPOINT, keys of its layout, and what else belongs to a model alone."""
    parser = argparse.ArgumentParser(
        prog=f"python -m megatron_lite.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_model(parser)
    return parser


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Options may stand between CHECKPOINT and keys. Raises UsageError for a value out of range, DataError for a chat
    template that cannot be read.
    """
    found, asked, template = parse_model(parser)
    sampling = Sampling(
        found.temperature, found.top_k, found.top_p, found.min_p, found.repetition_penalty, found.presence_penalty,
        found.frequency_penalty, dict(found.logit_bias),
    )  # fmt: skip
    stops = frozenset(found.stop_token)
    limits = Limits(found.max_new_tokens, stop_tokens=stops, stop_strings=tuple(found.stop))
    return found, Options(asked, sampling, limits, template)


def parse_model(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Asked, str | None]:
    """What a line of `model_command_line` says: all of it, the model, and the chat template's text if one is given.

    Raises DataError for a chat template that cannot be read.
    """
    found = parser.parse_intermixed_args()
    asked = Asked(found.checkpoint, tuple(found.overrides), found.dtype, found.device, found.tokenizer, found.base)
    return found, asked, _template(found.chat_template)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT",
        help="a step_N, a run (its newest), a Hugging Face or PEFT directory, or a GGUF file",
    )  # fmt: skip
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[],
        help="of the layout and the kernels, as parallel.tensor=2; replicas take what processes are left",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float64"), help="to compute in; default: what it was trained in"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what the node has")
    parser.add_argument("--base", metavar="PATH", help="what an adapter stands on; default: where it was")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one that the checkpoint carries")
    parser.add_argument("--chat-template", metavar="FILE", type=Path, help="Jinja; default: the tokenizer's")


def _add_sampling(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int) -> None:
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=max_new_tokens, metavar="N",
        help=f"fewer at a document's end or the trained length (default: {max_new_tokens})")  # fmt: skip
    add("--temperature", type=float, default=temperature, help=f"0 takes the likeliest (default: {temperature})")
    add("--top-k", type=int, help="draw from the K most likely tokens")
    add("--top-p", type=float, help="draw from the fewest tokens that have probability P together")
    add("--min-p", type=float, help="draw from tokens with this share of the likeliest's probability")
    add("--repetition-penalty", type=float, default=1.0, help="above 1 against what was written already")
    add("--presence-penalty", type=float, default=0.0, help="subtracted once from logits of new tokens")
    add("--frequency-penalty", type=float, default=0.0, help="subtracted for each time they were drawn")
    add("--logit-bias", type=_bias, action="append", default=[], metavar="ID=B", help="added to a token's logit")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    add("--stop-token", type=int, action="append", default=[], metavar="ID", help="end with it; may be repeated")
    add("--seed", type=int, default=0)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must look like ID=NUMBER, as 5=-1.5") from None


def _template(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--chat-template {path}: {error}") from None
