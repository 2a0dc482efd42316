"""Text as it is written: whole characters, and an end just before a stop string, wherever tokens meet.

    tokens -> Detokenizer -> text of whole characters -> StopStrings -> text that no stop string can still begin in

What comes out is never taken back. Joined it is the text of all tokens, up to a stop string, or without the
broken character at the end of an answer that its length cut off.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no character, or not yet
LAST = 8  # tokens of a prompt that can matter to what follows: a character has 4 bytes at most


class Detokenizer:
    """A token's text depends on those before it: a leading space may be left out, a character's bytes lie in several.

    So the tokens since the text was last whole are decoded after the last run that made it whole, and what is longer
    than that run's own text is new. The first such run is the end of the prompt, which the text continues.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()):
        self._decode = decode
        self._before = list(prompt[-LAST:])  # the last run
        self._since: list[int] = []
        if self._decode(self._before).endswith(BROKEN):
            self._before = []

    def put(self, token: int) -> str:
        """The text that is whole with this token, and was not before it."""
        self._since.append(token)
        text = self._text()
        if not text or text.endswith(BROKEN):
            return ""
        self._before, self._since = self._since, []
        return text

    def finish(self) -> str:
        """What is left, up to the last whole character."""
        return self._text().rstrip(BROKEN) if self._since else ""

    def _text(self) -> str:
        return self._decode([*self._before, *self._since])[len(self._decode(self._before)) :]


class StopStrings:
    """Of several the one that is complete first ends the text, the longest of those that end there."""

    def __init__(self, strings: Sequence[str]):
        self.strings = tuple(strings)
        self.found: str | None = None
        self._waiting = ""  # may become a stop string's beginning

    def put(self, text: str) -> str:
        """What of the text so far can go out now. After a stop string is found, nothing more comes."""
        if self.found is not None:
            return ""
        self._waiting += text
        ends = [(begin + len(s), -len(s), s) for s in self.strings if (begin := self._waiting.find(s)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            return self._release(end - len(self.found))
        return self._release(len(self._waiting) - self._held())

    def finish(self) -> str:
        """What waited, when the text ends otherwise."""
        return "" if self.found is not None else self._release(len(self._waiting))

    def _held(self) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        longest = max(map(len, self.strings), default=1) - 1
        lengths = range(min(longest, len(self._waiting)), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._waiting[-n:]) for s in self.strings)), 0)

    def _release(self, count: int) -> str:
        text, self._waiting = self._waiting[:count], self._waiting[count:]
        return text
