"""Clients of a server, in a process of their own: each asks again and again until the time is over.

    load_clients.py ADDRESS MODEL CLIENTS SECONDS -> a line of JSON: requests, tokens, failures, seconds

Every other one reads a stream. Lengths are those of `lengths`, in turn. The clock stops when the last is answered.
"""

import http.client
import json
import sys
import threading
import time
from itertools import count

WORDS = "the model reads a shard of text and writes what it learned in bytes".split()


def lengths(number: int) -> tuple[int, int]:
    """Words of a request's prompt, 4 to 67, and tokens of its answer, 16 to 79."""
    return 4 + number * 37 % 64, 16 + number * 23 % 64


def body_of(number: int, model: str, stop_ids: list[int]) -> dict:
    """Of which no answer ends before its length."""
    words, tokens = lengths(number)
    prompt = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(words))
    bias = {str(token): -100 for token in stop_ids}
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "seed": number, "logit_bias": bias}


class Clients:
    def __init__(self, address: str, model: str, seconds: float, stop_ids: list[int]):
        self.host, self.model, self.stop_ids = address.removeprefix("http://"), model, stop_ids
        self.end = time.monotonic() + seconds
        self.numbers, self.lock = count(), threading.Lock()
        self.requests, self.tokens, self.failures = 0, 0, list[str]()

    def run(self) -> None:
        """One of them."""
        connection = http.client.HTTPConnection(self.host, timeout=300)
        while time.monotonic() < self.end:
            with self.lock:
                number = next(self.numbers)
            try:
                tokens = self.ask(connection, number)
            except Exception as error:  # whatever it is, it is a failed request
                with self.lock:
                    self.failures.append(repr(error))
                connection = http.client.HTTPConnection(self.host, timeout=300)
                continue
            with self.lock:
                self.requests, self.tokens = self.requests + 1, self.tokens + tokens

    def ask(self, connection: http.client.HTTPConnection, number: int) -> int:
        body = body_of(number, self.model, self.stop_ids)
        if number % 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {text[:200]!r}")
        if number % 2:
            events = text.split(b"\n\n")
            if events[-2:] != [b"data: [DONE]", b""]:
                raise ValueError(f"the stream ends with {events[-1]!r}")
            text = events[-3].removeprefix(b"data: ")
        written = json.loads(text)["usage"]["completion_tokens"]
        if written != body["max_tokens"]:
            raise ValueError(f"{written} tokens instead of {body['max_tokens']}")
        return written


def main() -> None:
    address, model, clients, seconds, *stop_ids = sys.argv[1:]
    all_ = Clients(address, model, float(seconds), [int(token) for token in stop_ids])
    threads = [threading.Thread(target=all_.run) for _ in range(int(clients))]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    print(json.dumps({"requests": all_.requests, "tokens": all_.tokens, "failures": all_.failures, "seconds": took}))


if __name__ == "__main__":
    main()
