"""What people judged: a line of the reward format for each preference, and what is none in a file beside it.

    OUT.jsonl           prompt or messages, chosen, rejected, criterion, annotator, time, first (chosen or rejected)
    OUT.ties.jsonl      prompt or messages, answers [first, second], judgement (equal, bad or skip), criterion, ..
    OUT.answers.jsonl   prompt or messages, answers, seeds, temperature, model: what the model wrote to be judged

Lines are on the disk before anybody hears that they are taken. The files are all that is known of what was judged: a
server that starts again goes on from them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from megatron_lite.errors import DataError
from megatron_lite.serving.agreement import Agreement, agreement
from megatron_lite.serving.comparisons import BadRow, Comparing, Pair, context_of, digest, fields_of
from megatron_lite.serving.records import Records, Row, opened_records

Verdict = Literal["first", "second", "equal", "bad", "skip"]
Verdicts = Mapping[str, Verdict]  # by criterion
TIES = ("equal", "bad", "skip")
SKIP = "skip"


@dataclass
class Heard:
    """Who said what: by pair and criterion, then annotator. What is said is a verdict that does not depend on the order
    in which the answers were seen: which of two digests the better one has, or a tie's name.
    """

    said: dict[tuple[str, str], dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    done: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def put(self, pair: str, criterion: str, annotator: str, what: str) -> None:
        self.said[pair, criterion][annotator] = what
        self.done[annotator][pair].add(criterion)

    def of(self, annotator: str, pair: str) -> set[str]:
        """The criteria by which somebody has judged a pair."""
        return self.done[annotator][pair] if annotator in self.done and pair in self.done[annotator] else set()

    def agreement(self, criterion: str) -> Agreement:
        """Of all who did not skip."""
        found = (by.values() for (_, one), by in self.said.items() if one == criterion)
        return agreement([[what for what in values if what != SKIP] for values in found])


@dataclass(frozen=True)
class Part:
    """Rows for one file, and which verdicts they are of."""

    records: Records
    rows: list[Row]
    verdicts: Verdicts


@dataclass(frozen=True)
class Book:
    """The files, open, and what stands in them. `answered` are pairs that the model wrote, by digests of prompts."""

    comparing: Comparing
    preferences: Records
    ties: Records
    answers: Records
    heard: Heard
    answered: Mapping[str, Sequence[Pair]]

    def parts(self, pair: Pair, annotator: str, verdicts: Verdicts) -> Iterator[Part]:
        """Of a pair as it was seen, by criterion: what goes to each file, to be noted once it is written."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for records, tied in ((self.ties, True), (self.preferences, False)):
            some = {criterion: verdict for criterion, verdict in verdicts.items() if (verdict in TIES) == tied}
            if some:
                yield Part(records, [judgement(pair, name, annotator, one, now) for name, one in some.items()], some)

    def note(self, pair: Pair, annotator: str, verdicts: Verdicts) -> None:
        for criterion, verdict in verdicts.items():
            self.heard.put(pair.key, criterion, annotator, meaning(pair, verdict))


def judgement(pair: Pair, criterion: str, annotator: str, verdict: Verdict, time: str) -> Row:
    """A line's object."""
    who = {"criterion": criterion, "annotator": annotator, "time": time}
    if verdict in TIES:
        return {**fields_of(pair.context), "answers": list(pair.answers), "judgement": verdict, **who}
    first, second = pair.answers
    chosen, rejected = (first, second) if verdict == "first" else (second, first)
    place = "chosen" if verdict == "first" else "rejected"
    return {**fields_of(pair.context), "chosen": chosen, "rejected": rejected, **who, "first": place}


def meaning(pair: Pair, verdict: Verdict) -> str:
    """The same in both orders, and of no tendency that texts or files have: digests are as good as drawn."""
    if verdict in TIES:
        return verdict
    better, worse = pair.answers if verdict == "first" else pair.turned.answers
    return "lower" if digest(better) < digest(worse) else "higher"


@contextmanager
def opened_book(comparing: Comparing) -> Iterator[Book]:
    """Raises UsageError for files that cannot be written, DataError for lines that are not a book's."""
    path = comparing.judgements
    with ExitStack() as files:
        preferences, ties, answers = (
            files.enter_context(opened_records(path.with_name(f"{path.stem}{suffix}.jsonl")))
            for suffix in ("", ".ties", ".answers")
        )
        heard, answered = Heard(), defaultdict(list)
        for place, row in _placed(preferences):
            pair = _pair(place, row, ("chosen", "rejected"))
            heard.put(pair.key, *_who(place, row), meaning(pair, "first"))
        for place, row in _placed(ties):
            pair = _pair(place, row, ("answers",))
            heard.put(pair.key, *_who(place, row), _text(place, row, "judgement"))
        for place, row in _placed(answers):
            pair = _pair(place, row, ("answers",))
            answered[digest(fields_of(pair.context))].append(pair)
        yield Book(comparing, preferences, ties, answers, heard, answered)


def _placed(records: Records) -> Iterator[tuple[str, Row]]:
    return ((f"{records.path} line {number}", row) for number, row in records.rows)


def _pair(place: str, row: Row, names: Sequence[str]) -> Pair:
    try:
        context = context_of(row)
    except BadRow as error:
        raise DataError(f"{place} {error}") from None
    texts = row.get("answers") if names == ("answers",) else [row.get(name) for name in names]
    if not isinstance(texts, list) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place} has no two texts as {' and '.join(names)}")
    return Pair(context, (texts[0], texts[1]))


def _who(place: str, row: Row) -> tuple[str, str]:
    return _text(place, row, "criterion"), _text(place, row, "annotator")


def _text(place: str, row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise DataError(f"{place} has the {name} {row.get(name)!r:.80}: must be a text, as in what people judged here")
    return row[name]
