"""Answers in OpenAI's form: whole, or as the chunks of a stream."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from megatron_lite.inference.requests import Token
from megatron_lite.serving.pieces import Piece, Spelling
from megatron_lite.serving.reading import Asked

Tree = dict[str, Any]


@dataclass(frozen=True)
class Answer(ABC):
    """To one body. `prefix`, `kind`, `chunk_kind` are OpenAI's names for its id and objects."""

    asked: Asked
    model: str
    spelling: Spelling
    created: int = field(default_factory=lambda: int(time.time()))
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    @abstractmethod
    def choice(self, piece: Piece) -> Tree:
        """A whole one, without its index and its end."""

    @abstractmethod
    def delta(self, piece: Piece) -> Tree:
        """What a chunk adds to one."""

    @abstractmethod
    def beginnings(self) -> Iterator[Tree]:
        """Chunks before anything is written."""

    @abstractmethod
    def logprobs(self, piece: Piece) -> Tree | None:
        """Of its tokens; None where they are not asked for."""

    def whole(self, choices: Sequence[Piece]) -> Tree:
        made = [{"index": one.choice, **self.choice(one), "finish_reason": one.finish} for one in choices]
        return {**self._head(self.kind), "choices": made, "usage": self.usage(sum(len(one.tokens) for one in choices))}

    def chunk(self, piece: Piece) -> Tree:
        return self._chunk([{"index": piece.choice, **self.delta(piece), "finish_reason": piece.finish}], None)

    def last(self, tokens: int) -> Tree:
        """A chunk with the usage alone."""
        return self._chunk([], self.usage(tokens))

    def usage(self, tokens: int) -> Tree:
        prompt = self.asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    @property
    def wants_logprobs(self) -> bool:
        return self.asked.requests[0].log_probabilities is not None

    def _chunk(self, choices: list[Tree], usage: Tree | None) -> Tree:
        made = {**self._head(self.chunk_kind), "choices": choices}
        return {**made, "usage": usage} if self.asked.include_usage else made

    def _head(self, kind: str) -> Tree:
        return {"id": f"{self.prefix}-{self.identity}", "object": kind, "created": self.created, "model": self.model}


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def choice(self, piece: Piece) -> Tree:
        return {"text": self._echoed(piece.choice) + piece.text, "logprobs": self.logprobs(piece)}

    def delta(self, piece: Piece) -> Tree:
        return {"text": piece.text, "logprobs": self.logprobs(piece)}

    def beginnings(self) -> Iterator[Tree]:
        """Prompts that come back."""
        if self.asked.echo is not None:
            for number in range(self.asked.sequences):
                yield self.chunk(Piece(number, self._echoed(number)))

    def logprobs(self, piece: Piece) -> Tree | None:
        if not self.wants_logprobs:
            return None
        spell = self.spelling.of
        return {
            "tokens": [spell(token.id) for token, _ in piece.tokens],
            "token_logprobs": [token.log_probability for token, _ in piece.tokens],
            "top_logprobs": [self._likely(token) for token, _ in piece.tokens],
            "text_offset": [place for _, place in piece.tokens],
        }

    def _likely(self, token: Token) -> Tree:
        """By text; of two that are spelled alike the likelier one."""
        return {self.spelling.of(one): value for one, value in reversed(token.most_likely)}

    def _echoed(self, choice: int) -> str:
        return "" if self.asked.echo is None else self.asked.echo[choice // self.asked.n]


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, piece: Piece) -> Tree:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self.logprobs(piece)}

    def delta(self, piece: Piece) -> Tree:
        return {"delta": {"content": piece.text} if piece.text else {}, "logprobs": self.logprobs(piece)}

    def beginnings(self) -> Iterator[Tree]:
        """Who speaks."""
        for number in range(self.asked.sequences):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk([{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}], None)

    def logprobs(self, piece: Piece) -> Tree | None:
        if not self.wants_logprobs:
            return None
        entries = [
            {**self._entry(token.id, token.log_probability),
             "top_logprobs": [self._entry(*likely) for likely in token.most_likely]}
            for token, _ in piece.tokens
        ]  # fmt: skip
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, value: float | None) -> Tree:
        """`bytes` are null where the token is a part of a character."""
        text = self.spelling.of(token)
        part = "\N{REPLACEMENT CHARACTER}" in text
        return {"token": text, "logprob": value, "bytes": None if part else list(text.encode())}
