"""The endpoints."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from megatron_lite.serving.answers import Answer, ChatAnswer, CompletionAnswer
from megatron_lite.serving.desk import Desk, Ticket
from megatron_lite.serving.incoming import ClientGone, KeyCheck, read_body, while_there
from megatron_lite.serving.metrics import Metrics
from megatron_lite.serving.pieces import Piece, Spelling, joined
from megatron_lite.serving.reading import Asked, Reader
from megatron_lite.serving.refusals import Refusal, json_response
from megatron_lite.serving.settings import Settings

PAGE = Path(__file__).parent / "page.html"
UNFRAMED = {"Content-Security-Policy": "frame-ancestors 'none'"}  # the one rule that the page cannot say itself
NOTHING = Piece(0)
EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Office:
    """All that the endpoints need. Texts are read, and become ids, in one thread, so that a long one holds up no
    other's answer.
    """

    settings: Settings
    reader: Reader
    desk: Desk
    metrics: Metrics
    spelling: Spelling
    reading: ThreadPoolExecutor
    since: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Endpoint:
    """A body in, an answer out: the ASGI application of a path. `read` makes of a body what is asked, `form` the
    answer.
    """

    office: Office
    read: Callable[[bytes], Asked]
    form: type[Answer]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        office, loop = self.office, asyncio.get_running_loop()
        try:
            raw = await read_body(scope, receive, office.settings)
            asked = await while_there(receive, _in_thread(loop, office.reading, self.read, raw))
            ticket = office.desk.enter(asked)
            try:
                answer = self.form(asked, office.settings.name, office.spelling)
                await while_there(receive, self._answer(answer, ticket, scope, receive, send))
            finally:
                office.desk.leave(ticket)
        except ClientGone:
            office.metrics.answers.labels(scope["path"], "gone").inc()

    async def _answer(self, answer: Answer, ticket: Ticket, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = self.office.desk.pieces(ticket)
        if answer.asked.stream:
            await _stream(_events(answer, pieces), send)
            return
        found: list[list[Piece]] = [[] for _ in range(answer.asked.sequences)]
        async for piece in pieces:
            found[piece.choice].append(piece)
        await json_response(answer.whole([joined(one) for one in found]))(scope, receive, send)


async def _in_thread(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor, work: Callable[[bytes], Asked],
                     raw: bytes) -> Asked:  # fmt: skip
    return await loop.run_in_executor(pool, work, raw)


async def _events(answer: Answer, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """Server-sent events."""
    for tree in answer.beginnings():
        yield _event(tree)
    tokens = 0
    try:
        async for piece in pieces:
            tokens += len(piece.tokens)
            if piece.text or piece.tokens or piece.finish is not None:
                yield _event(answer.chunk(piece))
    except Refusal as refusal:
        yield _event(refusal.tree)
        return
    if answer.asked.include_usage:
        yield _event(answer.last(tokens))
    yield b"data: [DONE]\n\n"


def _event(tree: Any) -> bytes:
    return b"data: " + orjson.dumps(tree) + b"\n\n"


async def _stream(events: AsyncIterator[bytes], send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in EVENTS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def application(office: Office, more: Sequence[Route] = ()) -> Starlette:
    """With `more` routes beside its own."""
    settings, reader = office.settings, office.reader
    card = {
        "id": settings.name, "object": "model", "created": office.since, "owned_by": "megatron_lite",
        "max_model_len": reader.model.longest,
    }  # fmt: skip

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != settings.name:
            text = f"the model does not exist: this server has {settings.name!r}"
            raise Refusal(404, text, "model", "model_not_found")
        return json_response(card)

    async def health(request: Request) -> Response:
        closed = office.desk.closed
        return json_response({"status": "ok"}) if closed is None else closed.response()

    async def metrics(request: Request) -> Response:
        return Response(office.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers=UNFRAMED)

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", Endpoint(office, reader.completion, CompletionAnswer), methods=["POST"]),
        Route("/v1/chat/completions", Endpoint(office, reader.chat, ChatAnswer), methods=["POST"]),
        *more,
    ]
    layers = [Middleware(Counted, metrics=office.metrics, paths=frozenset(route.path for route in routes))]
    if settings.origins:
        allowed = ("Authorization", "Content-Type")
        some = partial(CORSMiddleware, allow_origins=settings.origins, allow_methods=("GET", "POST"))
        layers.append(Middleware(some, allow_headers=allowed))
    if settings.key is not None:
        layers.append(Middleware(KeyCheck, key=settings.key))
    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _missing, Exception: _failed}
    return Starlette(routes=routes, middleware=layers, exception_handlers=handlers)


class Counted:
    """Counts each answer by its status, under paths that there are."""

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]):
        self.app, self._answers, self._paths = app, metrics.answers, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._answers.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


async def _refused(request: Request, refusal: Refusal) -> Response:
    return refusal.response()


async def _missing(request: Request, error: HTTPException) -> Response:
    reason = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return Refusal(error.status_code, reason, headers=error.headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    """What the server logs with its traceback."""
    return Refusal(500, "the server failed to answer this request").response()
