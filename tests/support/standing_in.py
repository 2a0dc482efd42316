"""A server that speaks what the page asks for, and answers each question as it says."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep
from typing import Any

PAGE = Path(__file__).parent.parent.parent / "megatron_lite" / "serving" / "page.html"
POLITE = "A polite answer."
HOSTILE = "\n".join(
    [
        "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">",
        "<b>bold</b> &amp; [a link](javascript:alert(1)) </div></article></main><style>* { display: none }</style>",
        "مرحبا بالعالم, שלום עולם, \u202eturned around\u202c and \u202enever turned back",
        "W" * 600,
        "H̷̛̘̺̣͉̪̅̑̓͂̊͘ͅę̷̛͖̠̦̣̲̀̑̈́͊̓ ̵c̸̨̛̝̖̩̣̀̓̈́͝o̴m̵e̸s" + "\u0301" * 200,
        "```html",
        "<script>document.title = 'taken'</script>" + " wide" * 100,
        "```",
        "after `<i>code</i>` \x00\x07\ufffd\U0001f468‍\U0001f469‍\U0001f467 " + "/".join(["path"] * 200),
        "```an open fence",
        "reaches to the end",
    ]
)
LONG = "\n\n".join(f"Paragraph {number}. " + "Some words of a long answer. " * 12 for number in range(40))
CODE = (
    "Here is a loop:\n\n```python\nfor number in range(3):\n    print(number)  # "
    + "long " * 40
    + "\n```\n\nThat is all."
)


@dataclass
class Kept:
    """What the server was asked, in order, and how it does."""

    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    gone_away: int = 0  # answers whose reader left before their end


def pieces_of(question: str) -> tuple[list[str], float]:
    """The pieces of the answer, and seconds before each."""
    texts = {"hostile": HOSTILE, "long": LONG, "code": CODE}
    if question.startswith("count"):
        return [f"{number} " for number in range(200)], 0.05
    text = texts.get(question.split()[0], POLITE)
    return [text[start : start + 7] for start in range(0, len(text), 7)], 0.001


def handler_of(kept: Kept) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing on stderr."""

        def answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer_json(self, status: int, value: Any) -> None:
            self.answer(status, json.dumps(value).encode(), "application/json")

        def refuse(self, status: int, sentence: str) -> None:
            self.answer_json(status, {"error": {"message": sentence, "type": "invalid_request_error", "code": status}})

        def let_in(self) -> bool:
            if kept.key is None or self.headers.get("Authorization") == f"Bearer {kept.key}":
                return True
            self.refuse(401, "This server wants its API key as Authorization: Bearer KEY.")
            return False

        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
            elif self.path == "/health":
                self.answer_json(200, {"status": "ok"})
            elif self.path == "/v1/models" and self.let_in():
                self.answer_json(200, {"object": "list", "data": [{"id": "nano-1.3m", "object": "model"}]})
            elif self.path != "/v1/models":
                self.refuse(404, f"{self.path}: there is no such path.")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.let_in():
                return
            kept.asked.append(body)
            question = body["messages"][-1]["content"]
            if question.startswith("refuse"):
                self.refuse(int(question.split()[1]), f"Refused because {question.split(maxsplit=2)[2]}.")
            else:
                self.stream(question)

        def stream(self, question: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            pieces, pause = pieces_of(question)
            try:
                for number, piece in enumerate(pieces):
                    sleep(pause)
                    self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
                    if number == 1 and question.startswith("break"):
                        return
                    if number == 1 and question.startswith("fail"):
                        self.event({"error": {"message": "The model ran out of its cache."}})
                        return
                self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self.event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
                self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                kept.gone_away += 1

        def event(self, value: Any) -> None:
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    return Handler


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def standing_in(kept: Kept, port: int = 0) -> Iterator[int]:
    with listening(handler_of(kept), port) as served:
        yield served


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """The port of a server that runs meanwhile."""
    server = QuietServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
