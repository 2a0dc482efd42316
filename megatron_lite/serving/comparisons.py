"""What people are to compare: pairs of answers that a file gives, and questions to which the model writes two.

    prompt or messages, answers: [.., ..]       two or more; each two of them are a pair
    prompt or messages, chosen, rejected        judged again, by people who are not told
    prompt or messages                          the model writes two answers

A prompt is continued as it is; messages are answered by the model's chat template.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import orjson

from megatron_lite.data.jsonl import read_batches
from megatron_lite.errors import DataError, UsageError

Message = Mapping[str, str]
Context = str | tuple[Message, ...]
ROLES = ("system", "developer", "user", "assistant", "tool")
AT_ONCE_BYTES = 1 << 18
SHOWN_PLACES = 5  # of rows that are bad too
CRITERION_CHARACTERS = 60


@dataclass(frozen=True)
class Pair:
    """Two answers, in the order in which somebody sees them or in any. `key` is of the pair in either order, `seen` of
    the pair in this one: who judges names what was seen, so no order can be mixed up later.
    """

    context: Context
    answers: tuple[str, str]

    @cached_property
    def key(self) -> str:
        return digest(fields_of(self.context), sorted(self.answers))

    @cached_property
    def seen(self) -> str:
        return digest(fields_of(self.context), self.answers)

    @property
    def turned(self) -> "Pair":
        return Pair(self.context, (self.answers[1], self.answers[0]))


@dataclass(frozen=True)
class Question:
    """What has no answers yet. `place` is where it stands, `repeat` how often the same stood before it."""

    context: Context
    place: str
    repeat: int = 0

    @cached_property
    def key(self) -> str:
        return digest(fields_of(self.context), self.repeat)


@dataclass(frozen=True)
class Comparing:
    """What there is to judge, by what, and where judgements go. Answers are drawn at `temperature`, with so many
    tokens at most (None: as have room).
    """

    items: tuple[Pair | Question, ...]
    judgements: Path
    criteria: tuple[str, ...] = ("helpful", "harmless")
    temperature: float = 1.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError."""
        for criterion in self.criteria:
            if not criterion or len(criterion) > CRITERION_CHARACTERS or not criterion.isprintable():
                raise UsageError(f"--criteria {criterion!r}: must be words of up to {CRITERION_CHARACTERS} characters")
        if len(set(self.criteria)) != len(self.criteria):
            raise UsageError(f"--criteria {','.join(self.criteria)}: each must be there once")
        if not 0 < self.temperature <= 100:
            wanted = "must be above 0, or both answers would be the same, and at most 100"
            raise UsageError(f"--compare-temperature {self.temperature:g}: {wanted}")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"--compare-tokens {self.tokens}: must be 1 or more")
        if self.judgements.suffix != ".jsonl":
            raise UsageError(f"--judgements {self.judgements}: must end in .jsonl")

    @property
    def questions(self) -> list[Question]:
        return [item for item in self.items if isinstance(item, Question)]


class BadRow(Exception):
    """Why a row cannot be judged: a sentence's rest about it."""


def digest(*parts: Any) -> str:
    """Of JSON: 32 hexadecimal digits."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def fields_of(context: Context) -> dict[str, Any]:
    """As rows have it."""
    return {"prompt": context} if isinstance(context, str) else {"messages": context}


def read_comparisons(path: Path) -> tuple[Pair | Question, ...]:
    """All of a JSONL file (plain, .gz or .zst), in its order; a pair that comes again counts once. Raises DataError,
    which names the rows that are bad.
    """
    found: list[Pair | Question] = []
    bad: list[tuple[str, str]] = []
    pairs: set[str] = set()
    asked: dict[str, int] = {}
    for place, line in _lines(path):
        try:
            items = _items(line, place)
        except BadRow as error:
            bad.append((place, str(error)))
            continue
        for item in items:
            if isinstance(item, Pair):
                if item.key not in pairs:
                    found.append(item)
                pairs.add(item.key)
            else:
                repeat = asked.get(item.key, 0)
                asked[item.key] = repeat + 1
                found.append(Question(item.context, item.place, repeat))
    if bad:
        raise DataError(bad_rows(bad))
    if not found:
        raise DataError(f"--compare {path}: there is nothing in it to judge")
    return tuple(found)


def bad_rows(bad: Sequence[tuple[str, str]]) -> str:
    """One sentence about rows of a file, as (place, what is wrong)."""
    (place, what), *others = bad
    if not others:
        return f"{place} {what}"
    more = [place.rpartition(" ")[2] for place, _ in others]
    named = ", ".join(more[:SHOWN_PLACES]) + (", .." if len(more) > SHOWN_PLACES else "")
    return f"{place} {what}; {len(more)} more cannot be judged either: line {named}"


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for batch in read_batches((path,), AT_ONCE_BYTES):
        for number, line in enumerate(batch.lines, batch.first_line):
            if line.strip():
                yield f"{path} line {number}", line


def _items(line: bytes, place: str) -> list[Pair] | list[Question]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadRow(f"is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRow(f"is no object but a JSON {type(row).__name__}")
    context, answers = context_of(row), _answers(row)
    if answers is None:
        return [Question(context, place)]
    return [Pair(context, two) for two in combinations(answers, 2)]


def context_of(row: Mapping[str, Any]) -> Context:
    """Raises BadRow."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        raise BadRow("must have either prompt or messages")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRow(f"has the prompt {prompt!r:.80}: must be a text")
        return prompt
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"has the messages {messages!r:.80}: must be a list of objects, one or more")
    made = tuple(_message(number, one) for number, one in enumerate(messages))
    _check_turns([one["role"] for one in made])
    return made


def _message(number: int, one: Any) -> Message:
    """With nothing in it that the page would not show."""
    if not isinstance(one, dict) or one.keys() != {"role", "content"}:
        keys = ", ".join(sorted(one)) if isinstance(one, dict) else f"{one!r:.80}"
        raise BadRow(f"message {number} has {keys}: must have role and content, and nothing else")
    if one["role"] not in ROLES:
        raise BadRow(f"message {number} has the role {one['role']!r:.40}: must be one of {', '.join(ROLES)}")
    if not isinstance(one["content"], str):
        raise BadRow(f"message {number} has the content {one['content']!r:.80}: must be a text")
    return {"role": one["role"], "content": one["content"]}


def _check_turns(roles: Sequence[str]) -> None:
    """What reward models can be trained on: the assistant answers somebody, and has not done so yet."""
    if roles[-1] == "assistant":
        raise BadRow(f"message {len(roles) - 1} is the assistant's: answers stand apart, after somebody else's message")
    spoken = [role for role in roles if role not in ("system", "developer")]
    if not spoken or spoken[0] == "assistant":
        raise BadRow("has nothing that is answered: a user's message must come before the assistant's")
    if any(pair == ("assistant", "assistant") for pair in pairwise(roles)):
        raise BadRow("has two of the assistant's messages in a row")


def _answers(row: Mapping[str, Any]) -> list[str] | None:
    """None where the row has none."""
    names = [name for name in ("answers", "chosen", "rejected") if row.get(name) is not None]
    if not names:
        return None
    if names == ["answers"]:
        found = row["answers"]
        if not isinstance(found, list) or len(found) < 2:
            raise BadRow(f"has the answers {found!r:.80}: must be a list of two texts or more")
        named = [(f"answer {number}", one) for number, one in enumerate(found)]
    elif names == ["chosen", "rejected"]:
        named = [(name, row[name]) for name in names]
    else:
        raise BadRow(f"has {', '.join(names)}: must have answers, or chosen and rejected, or none of them")
    for name, text in named:
        if not isinstance(text, str) or not text.strip():
            raise BadRow(f"has the {name} {text!r:.80}: must be a text that is not empty")
    for (one, text), (other, same) in combinations(named, 2):
        if text == same:
            raise BadRow(f"has the same text as {one} and as {other}")
    return [text for _, text in named]
