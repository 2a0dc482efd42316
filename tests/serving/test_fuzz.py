"""Bodies that nobody would send: each is answered, or refused with a reason, and none breaks the server."""

import http.client
import json
import random
from typing import Any

from support.serving import NAME, running, save_small, served_of

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.serving.bodies import ChatBody, CompletionBody
from megatron_lite.serving.settings import Settings

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
VALUES = [
    None, True, False, 0, -1, 1, 2, 5, 1e9, -1e9, 1e-300, 1e300, 2**63, -(2**63), 2**70, 0.5, "", "x", "e", "</s>",
    "\x00", "\ufdd0", "\U0001f600\u200d", "ä" * 50, [], [0], [1, 2, 3], ["a", ""], [[]], [[1], [2]], [[[1]]], [-1],
    [10**6], {}, {"x": 1}, {"1": 5}, {"1": "x"}, {"-1": 5}, {"type": "text"}, {"type": "json_object"},
    {"include_usage": True}, [{"role": "user", "content": "x"}], [{"role": "tool", "content": None}],
    [{"role": "assistant", "tool_calls": []}], [{"role": "assistant", "tool_calls": [CALL]}], "text", "auto",
    [{"role": "user", "content": [{"type": "text", "text": "</s>"}]}],
    [{"role": "user", "content": [{"type": "audio"}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": [1, None, "</s>"]}}}}],
]  # fmt: skip
# By field, what may well be right: else nearly every body would be refused at its first field.
LIKELY = {
    "n": [1, 2, 3], "temperature": [0, 0.1, 2, 1e-300], "top_p": [1, 0.01], "top_k": [1, 10**9], "min_p": [0, 1e-320],
    "stop": ["e", ["a", "the"]], "stream": [True], "logit_bias": [{"1": 5}, {"0": -100, "3": 100}], "seed": [-1, 2**62],
    "prompt": ["", "ä\x00", [0], [399], [[1], [2]], ["a", ""]], "echo": [False, True], "presence_penalty": [-2, 2],
    "repetition_penalty": [1e-9, 100], "max_tokens": [1, 8], "tool_choice": ["none", "auto"],
    "messages": [[{"role": "user", "content": [{"type": "text", "text": "</s>"}]}], [{"role": "tool", "content": ""}]],
    "tools": [[{"type": "function", "function": {"name": "f", "parameters": {"</s>": {"b": [1, None]}}}}], []],
}  # fmt: skip
RAW = [
    b"NaN", b"Infinity", b"-Infinity", b'"\\ud800"', b"[" * 500, b'{"a":' * 300, b"1e999", b"\xff", b"\x00", b"'",
    b"9" * 5000,
]  # fmt: skip


def changed(body: dict[str, Any], names: list[str], rng: random.Random) -> bytes:
    """Some of its fields are others, or more, or gone; at times the text itself is no JSON any more."""
    for name in rng.sample(names, rng.randint(1, 4)):
        if rng.random() < 0.1:
            body.pop(name, None)
        else:
            body[name] = rng.choice(VALUES if rng.random() < 0.3 else LIKELY.get(name, [None]))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(RAW) + text[place + rng.randint(0, 3) :]
    return text


def test_a_thousand_bodies_break_nothing(tmp_path):
    served = served_of(save_small(tmp_path), SentencePieceTokenizer(tmp_path / "small.model"))
    rng = random.Random(0)
    common = {"model": NAME, "max_tokens": 2, "logit_bias": {"5": 1}}
    kinds = [
        ("/v1/completions", CompletionBody, {"prompt": "the model"}),
        ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": "x"}]}),
    ]
    statuses: dict[int, int] = {}
    with running(served, Settings(NAME, output=8)) as server:
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=30)
        for _ in range(1000):
            path, kind, own = rng.choice(kinds)
            body = changed({**common, **own}, [*kind.model_fields, "unheard_of"], rng)
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status in (200, 400, 404), (answer.status, path, body)
            assert answer.status == 200 or json.loads(text)["error"]["message"]
        connection.request("GET", "/metrics")
        assert b"megatron_lite_cache_blocks_used 0.0" in connection.getresponse().read()
        connection.close()
    assert min(statuses[200], statuses[400]) > 200, statuses
