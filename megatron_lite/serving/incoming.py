"""A request's way in: its key, its body within bounds of size and time, and whether its client is still there."""

import asyncio
import hmac
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from megatron_lite.serving.refusals import Refusal
from megatron_lite.serving.settings import Settings

T = TypeVar("T")
OPEN = ("/", "/compare", "/health")  # without a key
CLOSE = {"Connection": "close"}
# A body that is too long is read on for a little and thrown away, since an answer to a client that still sends gets
# lost. It is read slowly, some 64 KiB at a time: whoever sends without an end should not keep the processor busy.
THROWN_AWAY, THROWING_SECONDS, THROWING_PAUSE = 8, 2.0, 0.01


class ClientGone(Exception):
    """Nobody is there to be answered."""


class KeyCheck:
    """Lets nobody further who lacks the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self._wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._wanted):
                text = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
                refusal = Refusal(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer", **CLOSE})
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """All of it. Raises Refusal for one that is no JSON, too long or too slow, ClientGone where the client is."""
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the body must have the Content-Type application/json", headers=CLOSE)
    length = headers.get("content-length", "")
    too_long = Refusal(413, f"the body is longer than {settings.body} bytes, the most that are taken", headers=CLOSE)
    if length.isascii() and length.isdigit() and int(length[:20]) > settings.body * THROWN_AWAY:
        raise too_long
    body = _Body(settings.body)
    try:
        async with asyncio.timeout(settings.body_seconds):
            while not body.whole:
                body.put(await receive())
                if body.size > body.most:
                    await asyncio.sleep(THROWING_PAUSE)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {settings.body_seconds:g} s", headers=CLOSE) from None
    if body.size > settings.body:
        raise too_long
    return bytes(body.content)


class _Body:
    """As much as is kept, and how much there was."""

    def __init__(self, most: int):
        self.most, self.size, self.content, self.whole = most, 0, bytearray(), False
        self._too_long_since: float | None = None

    def put(self, message: Any) -> None:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        self.size += len(part)
        self.whole = not message.get("more_body", False)
        if self.size <= self.most:
            self.content += part
            return
        self.content.clear()
        now = time.monotonic()
        self._too_long_since = self._too_long_since or now
        if self.size > self.most * THROWN_AWAY or now - self._too_long_since > THROWING_SECONDS:
            self.whole = True  # as far as anybody reads it


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises ClientGone, and ends `work`, when the client goes away."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for one in (doing, watching):
            one.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
