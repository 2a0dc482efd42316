"""A connection that is patient for so long and no longer: with headers that do not come, and answers that nobody reads.

uvicorn waits for both without an end.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 32\r\n\r\nthe headers did not come in time"
)


class Connection(H11Protocol):
    """`header_seconds` and `unread_seconds` are set by a subclass for one server (`connection_of`)."""

    header_seconds: float
    unread_seconds: float

    def __init__(self, *arguments: Any, **others: Any):
        super().__init__(*arguments, **others)
        self._headers_due: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_due, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end_when_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_when_closing()

    def _end_when_closing(self) -> None:
        """A connection that is closed with something left to read would stay for as long as nobody reads it."""
        if self.transport.is_closing() and self._unread is None:
            self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def _watch_headers(self) -> None:
        """From a request's first byte, or the connection's beginning, to the end of its headers."""
        waiting = (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()
        if not waiting and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        elif waiting and self._headers_due is None:
            self._headers_due = self.loop.call_later(self.header_seconds, self._late)

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()
            self._end_when_closing()


def connection_of(header: float, unread: float) -> type[Connection]:
    """With these patiences, in seconds."""
    return type("PatientConnection", (Connection,), {"header_seconds": header, "unread_seconds": unread})
