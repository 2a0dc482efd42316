"""People who compare answers: which pair is whose turn, in which order, and what they say of it.

GET  /compare          the page
GET  /compare/next     ?annotator=NAME -> the next pair that this annotator has not judged
POST /compare/judge    {annotator, pair, judgements: {criterion: verdict}} -> the next pair
"""

import asyncio
import hmac
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from megatron_lite.serving.application import UNFRAMED, Office
from megatron_lite.serving.bodies import Part as Body
from megatron_lite.serving.bodies import parsed
from megatron_lite.serving.comparisons import Pair, Question, digest, fields_of
from megatron_lite.serving.incoming import ClientGone, read_body
from megatron_lite.serving.judgements import Book, Verdict, Verdicts, meaning
from megatron_lite.serving.pairing import Pairing
from megatron_lite.serving.records import Records, Row
from megatron_lite.serving.refusals import Refusal, json_response

Tree = dict[str, Any]
PAGE = Path(__file__).parent / "compare.html"
AHEAD = 4  # questions that the model answers before somebody comes to them
NAME_CHARACTERS = 80
CHANGED = Refusal(409, "you have judged this pair in another way before: that stays", "judgements")
UNKNOWN = Refusal(409, "this pair is no longer here to be judged", "pair")


def _name(value: str) -> str:
    """What a line can say of somebody."""
    if value != value.strip() or not value or not value.isprintable() or len(value) > NAME_CHARACTERS:
        raise ValueError(f"must be a name of 1 to {NAME_CHARACTERS} characters, with no space at its ends")
    return value


class JudgeBody(Body):
    annotator: Annotated[str, AfterValidator(_name)]
    pair: str
    judgements: Annotated[dict[str, Verdict], Field(min_length=1)]


@dataclass
class Bench:
    """What is judged, and by whom it still has to be. Lives in the event loop.

    Items are known by their places in the file. A question has no pair until the model has written its answers, and
    never one where the model has no two.
    """

    book: Book
    pairing: Pairing
    _pairs: dict[int, Pair] = field(default_factory=dict)
    _fruitless: set[int] = field(default_factory=set)  # questions without two answers
    _writing: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)  # answers to questions
    _keys: set[str] = field(default_factory=set)
    _seen: dict[str, Pair] = field(default_factory=dict)  # by what is seen of them, in both orders
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _judging: asyncio.Lock = field(default_factory=asyncio.Lock)
    _disk: asyncio.Lock = field(default_factory=asyncio.Lock)
    _agreement: Tree | None = None  # until somebody judges again

    def __post_init__(self) -> None:
        for number, item in enumerate(self.book.comparing.items):
            if isinstance(item, Pair):
                self._put(number, item)
            elif item.repeat < len(written := self.book.answered.get(digest(fields_of(item.context)), ())):
                self._put(number, written[item.repeat])

    async def next(self, annotator: str) -> Tree:
        """The first pair that somebody has not judged by all criteria, and how far all are. Raises Refusal."""
        for number in range(len(self.book.comparing.items)):
            if number not in self._pairs and number not in self._fruitless:
                self.look_ahead(number)
                await asyncio.shield(self._answers(number))
            pair = self._pairs.get(number)
            if pair is not None and (criteria := self._left(annotator, pair)):
                self.look_ahead(number + 1)
                seen = self._in_drawn_order(annotator, pair)
                first, second = seen.answers
                shown = {"pair": seen.seen, **fields_of(seen.context), "first": first, "second": second}
                return {**shown, "criteria": criteria, **self._progress(annotator)}
        return {"pair": None, "criteria": list(self.book.comparing.criteria), **self._progress(annotator)}

    async def judge(self, body: JudgeBody) -> None:
        """On the disk when it returns. The same once more is no mistake: the reply may have got lost. Raises
        Refusal.
        """
        criteria = self.book.comparing.criteria
        if unknown := next((one for one in body.judgements if one not in criteria), None):
            text = f"judgements: {unknown[:80]!r} is no criterion here: must be one of {', '.join(criteria)}"
            raise Refusal(400, text, "judgements")
        pair = self._seen.get(body.pair)
        if pair is None:
            raise UNKNOWN
        async with self._judging:
            new = self._unheard(body.annotator, pair, body.judgements)
            for part in self.book.parts(pair, body.annotator, new):
                await self._add(part.records, part.rows)
                self.book.note(pair, body.annotator, part.verdicts)
                self._agreement = None

    def look_ahead(self, number: int) -> None:
        """Have the model answer the questions that come from there on."""
        for one in range(number, min(number + AHEAD, len(self.book.comparing.items))):
            if one not in self._pairs and one not in self._fruitless:
                self._answers(one)

    def _answers(self, number: int) -> "asyncio.Task[None]":
        """What one waits for until a question has its answers. It goes on when nobody waits."""
        task = self._writing.get(number)
        if task is None:
            task = self._writing[number] = asyncio.create_task(self._answer(number))
            task.add_done_callback(lambda done: self._answered(number, done))
        return task

    async def _answer(self, number: int) -> None:
        question = self.book.comparing.items[number]
        assert isinstance(question, Question)
        made = await self.pairing.pair(question)
        if made is None:
            self._fruitless.add(number)
            return
        pair, row = made
        await self._add(self.book.answers, [row])
        self._put(number, pair)

    def _answered(self, number: int, done: "asyncio.Task[None]") -> None:
        """Whoever comes to a question that failed has the model try again, and is told if that fails."""
        del self._writing[number]
        if not done.cancelled():
            done.exception()

    def _put(self, number: int, pair: Pair) -> None:
        self._pairs[number] = pair
        self._keys.add(pair.key)
        for order in (pair, pair.turned):
            self._seen[order.seen] = order

    def _in_drawn_order(self, annotator: str, pair: Pair) -> Pair:
        """Drawn for each pair and annotator: one who loads the page again sees the same."""
        drawn = hmac.digest(self._secret, f"{pair.key} {annotator}".encode(), "sha256")
        return pair.turned if drawn[0] % 2 else pair

    def _left(self, annotator: str, pair: Pair) -> list[str]:
        judged = self.book.heard.of(annotator, pair.key)
        return [criterion for criterion in self.book.comparing.criteria if criterion not in judged]

    def _unheard(self, annotator: str, pair: Pair, verdicts: Verdicts) -> Verdicts:
        said = self.book.heard.said
        before = {name: said.get((pair.key, name), {}).get(annotator) for name in verdicts}
        if any(before[name] not in (None, meaning(pair, verdict)) for name, verdict in verdicts.items()):
            raise CHANGED
        return {name: verdict for name, verdict in verdicts.items() if before[name] is None}

    def _progress(self, annotator: str) -> Tree:
        """`total` counts pairs, and questions that the model has not answered yet."""
        heard, criteria = self.book.heard, set(self.book.comparing.criteria)
        judged = sum(key in self._keys and by >= criteria for key, by in heard.done.get(annotator, {}).items())
        waiting = len(self.book.comparing.items) - len(self._pairs) - len(self._fruitless)
        if self._agreement is None:
            self._agreement = {name: asdict(heard.agreement(name)) for name in self.book.comparing.criteria}
        return {"judged": judged, "total": len(self._keys) + waiting, "agreement": self._agreement}

    async def _add(self, records: Records, rows: list[Row]) -> None:
        """Raises Refusal."""
        async with self._disk:
            try:
                await asyncio.to_thread(records.add, rows)
            except OSError as error:
                text = f"{records.path.name} cannot be written, and nothing was: {error.strerror}"
                raise Refusal(507, text) from None


def routes_of(bench: Bench, office: Office) -> list[Route]:
    async def page(request: Request) -> Response:
        bench.look_ahead(0)
        return HTMLResponse(PAGE.read_bytes(), headers=UNFRAMED)

    async def next_pair(request: Request) -> Response:
        try:
            annotator = _name(request.query_params.get("annotator", ""))
        except ValueError as error:
            raise Refusal(400, f"annotator {error}", "annotator") from None
        return _private(await bench.next(annotator))

    async def judge(request: Request) -> Response:
        try:
            raw = await read_body(request.scope, request.receive, office.settings)
        except ClientGone:
            return Response(status_code=400)  # nobody is there to be told
        body = parsed(JudgeBody, raw)
        await bench.judge(body)
        return _private(await bench.next(body.annotator))

    return [
        Route("/compare", page),
        Route("/compare/next", next_pair),
        Route("/compare/judge", judge, methods=["POST"]),
    ]


def _private(tree: Tree) -> Response:
    return json_response(tree, headers={"Cache-Control": "no-store"})
