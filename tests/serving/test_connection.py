"""A connection's patience, over a transport that only notes what it is told; and rates by a clock that is set."""

import asyncio
from collections.abc import Coroutine

import pytest
import uvicorn
from uvicorn.server import ServerState

from megatron_lite.serving.connection import Connection, connection_of
from megatron_lite.serving.metrics import WINDOW, Rate


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written, self.aborted, self.closed = b"", False, False

    def get_extra_info(self, name, default=None):
        return default

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.closed or self.aborted

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True

    def pause_reading(self):
        """Nothing comes by itself."""

    def resume_reading(self):
        """Nothing comes by itself."""


async def answer(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def connected(header: float, unread: float) -> tuple[Connection, Transport]:
    config = uvicorn.Config(answer, lifespan="off", log_config=None)
    connection, transport = connection_of(header, unread)(config, ServerState(), {}), Transport()
    connection.connection_made(transport)
    return connection, transport


def in_loop(work: Coroutine[None, None, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize("reads", [False, True])
def test_who_does_not_read_is_cut_off(reads):
    async def work() -> None:
        connection, transport = connected(10, 0.05)
        connection.pause_writing()
        if reads:
            connection.resume_writing()
        await asyncio.sleep(0.1)
        assert transport.aborted is not reads

    in_loop(work())


def test_a_closed_connection_with_something_left_to_read_is_cut_off():
    async def work() -> None:
        connection, transport = connected(10, 0.05)
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.02)
        assert transport.written.startswith(b"HTTP/1.1 200") and transport.closed and not transport.aborted
        await asyncio.sleep(0.1)
        assert transport.aborted

    in_loop(work())


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n"])
def test_headers_that_do_not_come_end_the_connection(said):
    async def work() -> None:
        connection, transport = connected(0.05, 10)
        if said:
            connection.data_received(said)
        await asyncio.sleep(0.1)
        assert transport.closed and transport.written.startswith(b"HTTP/1.1 408 ")

    in_loop(work())


def test_headers_that_came_leave_the_connection_alone():
    async def work() -> None:
        connection, transport = connected(0.05, 10)
        connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        connection.cycle.response_complete = False
        await asyncio.sleep(0)
        assert not transport.closed

    in_loop(work())


def test_a_rate_forgets_what_is_older_than_its_window():
    now = 0.0
    rate = Rate(lambda: now)
    rate.add(50)
    now = WINDOW / 2
    rate.add(30)
    assert rate.value() == 80 / WINDOW
    now = WINDOW + 0.1
    assert rate.value() == 30 / WINDOW
    now = 3 * WINDOW
    assert rate.value() == 0
