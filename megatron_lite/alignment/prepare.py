"""From a file of rows to a store, once: rendered, masked and tokenized by workers, found again by content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Rendering:
    """What decides what rows become. `tokenizer` is a path that `open_tokenizer` takes, `template` a chat template's
    text (None: rows of plain text alone); `longest` tokens a sample has at most, both segments of a pair together; of
    rows with a `criterion` those of this one are taken (None: all).
    """

    kind: Literal["dialogue", "pair"]
    tokenizer: str
    template: str | None
    longest: int
    system_prompt: str | None = None
    overlong: Literal["drop", "cut"] = "drop"
    bad_rows: Literal["stop", "skip"] = "stop"
    criterion: str | None = None


@dataclass(frozen=True)
class Prepared:
    """What became of a file's rows. `bad` counts those left out by reason, `dropped` those that were too long (or had
    no trained token left once cut), `cut` those that lost their ends, `others` those of another criterion.
    """

    prefix: Path
    rows: int
    samples: int
    bad: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    cut: int = 0
    others: int = 0
    tokens: int = 0
    trained_tokens: int = 0
