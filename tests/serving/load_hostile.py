"""One client that means harm, on a few connections at once, for so many seconds: load_hostile.py ADDRESS MODEL SECONDS.

A body that comes a byte at a time, one without an end, streams that nobody reads, and connections cut in the middle.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def request(model: str, **changes: object) -> bytes:
    body = json.dumps({"model": model, "prompt": "the model", "max_tokens": 400, **changes})
    return f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def slow(connection: socket.socket, model: str, end: float) -> None:
    connection.sendall(f"{HEAD}Content-Length: 100000\r\n\r\n".encode())
    while time.monotonic() < end:
        connection.sendall(b" ")
        time.sleep(0.2)


def huge(connection: socket.socket, model: str, end: float) -> None:
    connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    while time.monotonic() < end:
        connection.sendall(chunk)


def unread(connection: socket.socket, model: str, end: float) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.sendall(request(model, stream=True))
    time.sleep(min(20.0, max(0.0, end - time.monotonic())))


def cut(connection: socket.socket, model: str, end: float) -> None:
    connection.sendall(request(model, stream=True))
    connection.recv(1000)
    time.sleep(0.2)


def again(address: tuple[str, int], way: Callable[[socket.socket, str, float], None], model: str, end: float) -> None:
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(address, timeout=30) as connection:
            way(connection, model, end)


def main() -> None:
    host, _, port = sys.argv[1].removeprefix("http://").partition(":")
    end = time.monotonic() + float(sys.argv[3])
    ways = (slow, huge, unread, cut)
    threads = [threading.Thread(target=again, args=((host, int(port)), way, sys.argv[2], end)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
