"""A server that speaks what the page at /compare asks for: pairs, judgements, and refusals on demand."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.standing_in import HOSTILE, listening

PAGE = Path(__file__).parent.parent.parent / "megatron_lite" / "serving" / "compare.html"
WIDE = "def wide(names):\n\treturn [" + "name, " * 120 + "]\n" + "x" * 900 + "\n\n    indented\n\ttabbed"
RIGHT_TO_LEFT = "مرحبا بالعالم، هذا جواب مكتوب من اليمين إلى اليسار. " * 4 + "\nשלום\nand English\n" + "ש" * 300
PLAIN = "What the sea is like in winter, in a few words."
PAIRS: list[dict[str, Any]] = [
    {"pair": "plain", "prompt": PLAIN, "first": "Cold, and grey.", "second": "It is like the sea in summer."},
    {"pair": "hostile", "prompt": HOSTILE, "first": HOSTILE, "second": WIDE},
    {
        "pair": "dialogue",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "W" * 700},
            {"role": "assistant", "content": WIDE},
            {"role": "user", "content": RIGHT_TO_LEFT},
        ],
        "first": RIGHT_TO_LEFT,
        "second": "",
    },
]


@dataclass
class Bench:
    """What there is to judge, what was judged, and how the server does."""

    criteria: tuple[str, ...] = ("helpful", "harmless")
    pairs: list[dict[str, Any]] = field(default_factory=lambda: PAIRS)
    key: str | None = None
    seconds: float = 0.0  # before each answer
    gone: bool = False  # breaks every connection off
    turned_away: int = 0  # requests without the right key
    refusals: list[tuple[int, str]] = field(default_factory=list)  # of the next requests that need the key
    judged: list[dict[str, Any]] = field(default_factory=list)
    agreement: dict[str, Any] = field(default_factory=dict)

    def next(self, annotator: str) -> dict[str, Any]:
        done = {one["pair"] for one in self.judged if one["annotator"] == annotator}
        nothing = {"pair": None, "prompt": None, "messages": None, "first": "", "second": ""}
        pair = next((one for one in self.pairs if one["pair"] not in done), {})
        figures = {"judged": len(done), "total": len(self.pairs), "agreement": self.agreement}
        return {**nothing, **pair, "criteria": list(self.criteria), **figures}


def handler_of(bench: Bench) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing on stderr."""

        def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, sentence: str) -> None:
            self.answer(status, json.dumps({"error": {"message": sentence}}).encode())

        def let_in(self) -> bool:
            if bench.gone:
                return False
            if bench.key is not None and self.headers.get("Authorization") != f"Bearer {bench.key}":
                bench.turned_away += 1
                self.refuse(401, "This server wants its API key as Authorization: Bearer KEY.")
            elif bench.refusals:
                self.refuse(*bench.refusals.pop(0))
            else:
                return True
            return False

        def answer_next(self, annotator: str) -> None:
            sleep(bench.seconds)
            self.answer(200, json.dumps(bench.next(annotator)).encode())

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/compare":
                self.answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
            elif address.path != "/compare/next":
                self.refuse(404, f"{self.path}: there is no such path.")
            elif self.let_in():
                self.answer_next(parse_qs(address.query)["annotator"][0])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.let_in():
                bench.judged.append(body)
                self.answer_next(body["annotator"])

    return Handler


@contextmanager
def standing_in_compare(bench: Bench, port: int = 0) -> Iterator[int]:
    with listening(handler_of(bench), port) as served:
        yield served
