"""Text in, text out: the tokenizer that belongs to a checkpoint, and a completion with it."""

from collections.abc import Sequence
from pathlib import Path

from megatron_lite.checkpoint import Checkpoint
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.generation import sizes_for
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.requests import Limits, Request
from megatron_lite.inference.sampling import Sampling


def find_tokenizer(checkpoint: Checkpoint, given: str | None) -> Tokenizer:
    """The tokenizer `given`, or the one that the checkpoint carries, or in an older checkpoint that of the run.

    Raises DataError for one that the model was not trained with.
    """
    tokenizer = open_tokenizer(given or checkpoint.tokenizer or _recorded_path(checkpoint))
    record = checkpoint.index.tokenizer
    if record is not None and record.identity != tokenizer.identity:
        raise DataError(
            f"tokenizer {tokenizer.path} has sha256 {tokenizer.sha256[:16]}..., "
            f"{checkpoint} was trained with {record.path}, {record.identity.sha256[:16]}..."
        )
    size = checkpoint.index.model["vocab_size"]
    if tokenizer.vocab_size > size:
        raise DataError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, {checkpoint} knows {size}")
    return tokenizer


def complete(model: LanguageModel, tokenizer: Tokenizer, prompt: str, sampling: Sampling, max_new_tokens: int,
             seed: int, stop_strings: Sequence[str] = ()) -> str:  # fmt: skip
    """The prompt with its continuation. An empty prompt begins a document, as after the end of another."""
    tokens = tokenizer.encode(prompt) or [tokenizer.eod_id]
    limits = Limits(max_new_tokens, tokenizer.eod_id, tokenizer.vocab_size, stop_strings=tuple(stop_strings))
    request = Request(0, tuple(tokens), limits, sampling, seed)
    engine = Engine(model, sizes_for([request], model.longest), tokenizer.decode)
    return tokenizer.decode(tokens) + engine.run([request])[0][0].text


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
