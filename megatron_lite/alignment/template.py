"""Which chat template a run has, and a tokenizer that carries it, so that a model is asked as it was trained."""

import json
from dataclasses import replace
from pathlib import Path

from megatron_lite.alignment.masks import answer_masks
from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.open_tokenizer import tokenizer_of
from megatron_lite.data.tokenizer import GENERATION, TEMPLATE, Tokenizer
from megatron_lite.errors import UsageError

BUILT_IN = Path(__file__).with_name("chat.jinja")


def find_template(tokenizer: Tokenizer, given: str | None) -> str:
    """The text of the file `given`, or the tokenizer's own template, or where it has none the built-in one.

    Raises UsageError for a file that cannot be read.
    """
    if given is not None:
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is no UTF-8"
            raise UsageError(f"chat_template {given}: {why}; must be a file with a Jinja template") from None
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return BUILT_IN.read_text(encoding="utf-8")


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """The same tokenizer with this chat template among its files, and with what ends a turn among its stop ids: what
    is to be saved with a model that was trained so. Raises DataError for a template that cannot be trained with.
    """
    masks = answer_masks(ChatTemplate(source, tokenizer))
    files = {**tokenizer.files.content, TEMPLATE: source.encode()}
    ends = sorted({tokenizer.special_tokens[name] for name in masks.ends} | tokenizer.stop_ids)
    if set(ends) != tokenizer.stop_ids:
        others = [token for token in ends if token != tokenizer.eod_id]
        said = {**tokenizer.files.tree(GENERATION), "eos_token_id": [tokenizer.eod_id, *others]}
        files[GENERATION] = json.dumps(said).encode()
    return tokenizer_of(replace(tokenizer.files, content=files))
