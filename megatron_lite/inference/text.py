"""Text in, text out: the tokenizer that belongs to a model, prompts and their answers as rows of files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_lite.checkpoint import Checkpoint
from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.open_tokenizer import open_tokenizer, tokenizer_of
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.origin import Origin
from megatron_lite.exchange.ours import files_of
from megatron_lite.exchange.source import Source, tokenizer_files
from megatron_lite.inference.requests import Completion


@dataclass(frozen=True)
class Prompt:
    """What is to be continued: its text and ids, where it stands (for messages to the user), and what its row holds
    beside it, which goes on to the answer's.
    """

    text: str
    ids: tuple[int, ...]
    place: str
    others: Mapping[str, Any] = field(default_factory=dict)


def plain_prompt(text: str, tokenizer: Tokenizer) -> Prompt:
    return Prompt(text, tuple(tokenizer.encode_prompt(text)), "--prompt")


def read_prompts(path: Path, tokenizer: Tokenizer, template: str | None) -> list[Prompt]:
    """One of each line: {"prompt": text} or {"messages": [{"role", "content"}, ..]}, which the chat template turns into
    text. Raises DataError for what is neither.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"--prompts {path}: {error.strerror}") from None
    places = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [_prompt(line, place, tokenizer, template) for place, line in places]


def _prompt(line: bytes, place: str, tokenizer: Tokenizer, template: str | None) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError(f"{place} is no JSON") from None
    if not isinstance(row, dict) or isinstance(row.get("prompt"), str) == isinstance(row.get("messages"), list):
        raise DataError(f'{place} must hold either "prompt", a text, or "messages", a list')
    make = partial(Prompt, place=place, others={name: value for name, value in row.items() if name != "prompt"})
    if "messages" not in row:
        return make(row["prompt"], tuple(tokenizer.encode_prompt(row["prompt"])))
    try:
        chat = chat_template_of(tokenizer, template)
        return make(chat.render(row["messages"]), tuple(chat.encode(row["messages"])))
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def answer_of(prompt: Prompt, completions: Sequence[Completion]) -> str:
    """A line of JSON: what stood in the prompt's row, the prompt's text, and its completions."""
    made = [_completion(one) for one in completions]
    return json.dumps({**prompt.others, "prompt": prompt.text, "completions": made}, ensure_ascii=False)


def _completion(one: Completion) -> dict[str, Any]:
    """`logprobs` are null where they were not asked for; `top_logprobs` are there where they were."""
    found = [token.log_probability for token in one.tokens if token.log_probability is not None]
    made = {
        "text": one.text, "tokens": one.ids, "logprobs": found if len(found) == len(one.tokens) else None,
        "finish_reason": one.finish,
    }  # fmt: skip
    likely = [token.most_likely for token in one.tokens]
    return {**made, "top_logprobs": likely} if any(likely) else made


def chat_template_of(tokenizer: Tokenizer, given: str | None) -> ChatTemplate:
    """The text that is given, or the tokenizer's own. Raises DataError where there is none."""
    source = tokenizer.chat_template if given is None else given
    if source is None:
        raise DataError(f"tokenizer {tokenizer.path} has no chat template: give one with --chat-template FILE")
    return ChatTemplate(source, tokenizer)


def find_tokenizer(origin: Origin, given: str | None) -> Tokenizer:
    """The tokenizer `given`, or the one that the model carries, or in an older checkpoint that of the run.

    Raises DataError for one that the model was not trained with.
    """
    if isinstance(origin, Source):
        path, record, size = origin.path, origin.tokenizer, origin.model.vocab_size
        tokenizer = _carried(origin) if given is None else open_tokenizer(given)
    else:
        path, record, size = origin.path, origin.index.tokenizer, origin.index.model["vocab_size"]
        tokenizer = open_tokenizer(given or origin.tokenizer or _recorded_path(origin))
    if record is not None and record.identity != tokenizer.identity:
        raise DataError(
            f"tokenizer {tokenizer.path} has sha256 {tokenizer.sha256[:16]}..., "
            f"{path} was trained with {record.path}, {record.identity.sha256[:16]}..."
        )
    if tokenizer.vocab_size > size:
        raise DataError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, {path} knows {size}")
    return tokenizer


def _carried(source: Source) -> Tokenizer:
    files = tokenizer_files(source.path, files_of(source))
    if files is None:
        raise UsageError(f"{source.path} carries no tokenizer: give its tokenizer with --tokenizer")
    return tokenizer_of(files)


def _recorded_path(checkpoint: Checkpoint) -> Path:
    """The path in the run's configuration; a relative one from here, the run directory, or any directory above it."""
    recorded = checkpoint.index.config["data"]["tokenizer"]
    if recorded is None:
        raise UsageError(f"{checkpoint} was trained without data.tokenizer: give its tokenizer with --tokenizer")
    run_dir = checkpoint.path.resolve().parent.parent
    places = [Path(recorded), *(base / recorded for base in (run_dir, *run_dir.parents)), run_dir / Path(recorded).name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise DataError(
            f"tokenizer {recorded} of {checkpoint} is neither here nor at or above {run_dir}: give it with --tokenizer"
        )
    return found
