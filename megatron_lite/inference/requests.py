"""What is asked of generation, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from megatron_lite.errors import UsageError
from megatron_lite.inference.sampling import Sampling

Finish = Literal["length", "stop", "cancelled"]


@dataclass(frozen=True)
class Limits:
    """When a continuation ends: after so many tokens, at `eod` or another stop token, at a stop string. Only ids below
    `vocab_size` are ever drawn.

    Raises UsageError for limits that nothing could keep.
    """

    max_new_tokens: int
    eod: int | None = None
    vocab_size: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens = {self.max_new_tokens}: must be 1 or more")
        if "" in self.stop_strings:
            raise UsageError('stop string "": must have a character')

    def ends_at(self, token: int) -> bool:
        return token == self.eod or token in self.stop_tokens


@dataclass(frozen=True)
class Request:
    """`n` samples of what follows a prompt. Their random numbers are those of (seed, number, sample, position).

    number             names it among all that run, on all replicas
    drawn_as           the number whose random numbers it has, where that is another: equal requests of several users,
                       with equal seeds, have equal answers
    log_probabilities  None for none, else those of the drawn tokens and of so many most likely ones
    """

    number: int
    prompt: tuple[int, ...]
    limits: Limits
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    n: int = 1
    log_probabilities: int | None = None
    drawn_as: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"n = {self.n}: must be 1 or more")
        if self.log_probabilities is not None and self.log_probabilities < 0:
            raise UsageError(f"log_probabilities = {self.log_probabilities}: must be 0 or more")


@dataclass(frozen=True)
class Token:
    """One that was drawn; `most_likely` are (id, log-probability), the largest first. Log-probabilities are the model's
    own, at temperature 1.
    """

    id: int
    log_probability: float | None = None
    most_likely: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Addition:
    """What one step adds to a sample: a token, text that is whole with it (where there is a tokenizer), and with the
    last one why it ended. A sample that was cancelled has a last one without a token.
    """

    request: int
    sample: int
    token: Token | None
    text: str = ""
    finish: Finish | None = None


Listener = Callable[[Addition], None]


@dataclass(frozen=True)
class Completion:
    """A sample: every token that was drawn, one that ended it and those of a stop string among them; its text without
    them, as it continues the prompt's, where there is a tokenizer; and why it ended.
    """

    tokens: tuple[Token, ...]
    finish: Finish
    text: str = ""
    stopped_by: int | str | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def answer(self) -> list[int]:
        """The ids without a stop token."""
        return self.ids[:-1] if isinstance(self.stopped_by, int) else self.ids
