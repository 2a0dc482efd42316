"""What is written, piece by piece: which tokens belong to the text that was sent, and how each is spelled."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.inference.requests import Addition, Finish, Limits, Token
from megatron_lite.inference.stopping import Detokenizer


class Spelling:
    """Of single tokens, as they look in the middle of a text; a control token has its name."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._names = {token: name for name, token in tokenizer.special_tokens.items()}
        self._before = tokenizer.encode("a")[-1:]
        self._length = len(tokenizer.decode(self._before))
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def _of(self, token: int) -> str:
        if token in self._names:
            return self._names[token]
        if token >= self._tokenizer.vocab_size:  # entries of the model beyond the tokenizer's
            return f"<{token}>"
        return self._tokenizer.decode([*self._before, token])[self._length :]


@dataclass(frozen=True)
class Piece:
    """What becomes ready at once of a choice: text, and the tokens that begin in it, with their places in the whole."""

    choice: int
    text: str = ""
    tokens: tuple[tuple[Token, int], ...] = ()
    finish: Finish | None = None


@dataclass
class Choice:
    """One sample while it is written.

    A token counts as sent when its text does: neither one that ended the answer, nor those of a stop string. Where
    tokens begin has to be known for that only with stop strings or log-probabilities: else there is no `detokenizer`.
    """

    number: int
    limits: Limits
    detokenizer: Detokenizer | None
    length: int = 0  # of the text of all tokens, where it would go on
    sent: int = 0
    waiting: deque[tuple[Token, int]] = field(default_factory=deque)

    def put(self, addition: Addition) -> Piece:
        token = addition.token
        if token is not None and self.limits.ends_at(token.id):
            token = None
        if self.detokenizer is None:
            return Piece(self.number, addition.text, () if token is None else ((token, 0),), addition.finish)
        if token is not None:
            self.waiting.append((token, self.length))
            self.length += len(self.detokenizer.put(token.id))
        self.sent += len(addition.text)
        if addition.finish is not None:
            self.length += len(self.detokenizer.finish())
        whole = addition.finish is not None and self.length == self.sent  # no stop string took its end away
        ready = []
        while self.waiting and (whole or self.waiting[0][1] < self.sent):
            ready.append(self.waiting.popleft())
        return Piece(self.number, addition.text, tuple(ready), addition.finish)


def joined(pieces: Sequence[Piece]) -> Piece:
    """All of one choice as one."""
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(pieces[0].choice, "".join(piece.text for piece in pieces), tokens, pieces[-1].finish)
