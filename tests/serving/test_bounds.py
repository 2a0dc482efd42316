"""What a server does with those who ask too much, too slowly, without a key, or go away."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import openai
import pytest
from support.serving import NAME, ROWS, TEMPLATE, running

from megatron_lite.errors import UsageError
from megatron_lite.serve import template_of
from megatron_lite.serving.settings import Settings

KEY = "a secret"
FORBIDDEN = {"2": -100, "3": -100}  # what would end an answer
LONG = {"model": NAME, "prompt": "the model", "max_tokens": 180, "seed": 1, "logit_bias": FORBIDDEN}
QUEUE, BODY = 2, 4000
PATIENCE = {"header_seconds": 0.4, "body_seconds": 0.4, "unread_seconds": 1.0}


@pytest.fixture(scope="module")
def server(served):
    settings = Settings(NAME, KEY, ("http://page.example",), QUEUE, prompt=20, output=185, body=BODY, **PATIENCE)
    with running(served, settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture
def slow(server, monkeypatch):
    """Each step takes 0.1 s or more: an answer of 180 tokens is not done before a busy machine has asked for all."""
    engine = server.lead.batch.share.engine
    step = engine.step

    def slow_step() -> None:
        time.sleep(0.1)
        step()

    monkeypatch.setattr(engine, "step", slow_step)


def place(server) -> tuple[str, int]:
    host, _, port = server.address.removeprefix("http://").partition(":")
    return host, int(port)


def ask(server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    with closing(http.client.HTTPConnection(*place(server), timeout=30)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def post(server, body: bytes, **headers: str) -> tuple[int, dict, bytes]:
    told = {"Authorization": f"Bearer {KEY}", "Content_Type": "application/json"} | headers
    return ask(server, "POST", "/v1/completions", body, **told)


def measured(server, name: str) -> float:
    text = ask(server, "GET", "/metrics", Authorization=f"Bearer {KEY}")[2].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"megatron_lite_{name} ")).split()[1])


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def empty(server) -> bool:
    return not any(measured(server, name) for name in ("sequences_running", "sequences_waiting", "cache_blocks_used"))


def test_without_the_key_only_the_page_and_the_health_are_there(server):
    for key in ("", KEY[:-1], KEY + "x", "Bearer"):
        wrong = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key or "x", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.models.list()
        assert caught.value.code == "invalid_api_key"
    assert ask(server, "GET", "/metrics")[0] == 401
    assert ask(server, "POST", "/v1/completions", b"{}", Authorization=KEY)[0] == 401
    assert ask(server, "GET", "/health")[0] == 200
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<html" in page


def test_a_body_beyond_the_bound_is_refused_while_it_is_read(server):
    body = json.dumps({**LONG, "prompt": "x" * BODY}).encode()
    status, _, text = post(server, body)
    assert status == 413 and str(BODY) in json.loads(text)["error"]["message"]
    chunks = iter([body[begin : begin + 500] for begin in range(0, len(body), 500)])
    with closing(http.client.HTTPConnection(*place(server), timeout=30)) as connection:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", chunks, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    with closing(socket.create_connection(place(server))) as raw:
        raw.settimeout(10)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {10**12}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
    assert post(server, b"x" * BODY)[0] == 400


def test_a_body_that_is_no_json_is_refused(server):
    assert post(server, json.dumps(LONG).encode(), Content_Type="text/plain")[0] == 415
    for body in (b"", b"{", b"[]", b"1", b"\xff", b"null", b"[" * 3000, b'{"model": "small", "prompt": "\\ud800"}'):
        status, _, text = post(server, body)
        assert status == 400 and json.loads(text)["error"]["message"]


def test_paths_and_methods_that_are_not_there_are_refused_in_the_same_form(server):
    key = {"Authorization": f"Bearer {KEY}"}
    for method, path, status in (("GET", "/v1/none", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405)):
        found, _, text = ask(server, method, path, **key)
        assert found == status and json.loads(text)["error"]["type"] == "invalid_request_error"


def test_a_prompt_or_an_answer_beyond_the_bound_is_refused(client):
    for changes, name in (({"prompt": "the model " * 20}, "prompt"), ({"max_tokens": 186}, "max_tokens")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**LONG | changes)
        assert (caught.value.param, caught.value.code) == (name, "context_length_exceeded")


@pytest.mark.usefixtures("slow")
def test_more_than_run_and_wait_are_told_to_come_back(server, client):
    streams = [client.completions.create(**LONG, stream=True) for _ in range(ROWS + QUEUE)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(**LONG)
    assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "queue_full"
    assert until(lambda: measured(server, "sequences_running") == ROWS)
    assert measured(server, "sequences_waiting") == QUEUE
    for stream in streams:
        stream.close()
    assert until(lambda: empty(server))
    assert client.completions.create(**LONG | {"max_tokens": 1}).choices


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(server, stream):
    begun = measured(server, "generated_tokens_total")
    body = json.dumps({**LONG, "stream": stream, "n": 3}).encode()
    raw = socket.create_connection(place(server))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json"
    raw.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert until(lambda: measured(server, "sequences_running") == 3)
    raw.close()
    assert until(lambda: empty(server))
    assert measured(server, "generated_tokens_total") - begun < 3 * 180


def test_headers_and_bodies_that_do_not_come_are_not_waited_for(server):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    whole = f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    for said in ("", head, f"{whole}{{"):
        with closing(socket.create_connection(place(server))) as raw:
            raw.settimeout(10)
            raw.sendall(said.encode())
            begun = time.monotonic()
            assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert 0.2 < time.monotonic() - begun < 5


def test_small_pieces_are_sent_at_once(server):
    """Where they wait for each other, each takes 40 ms."""
    with closing(http.client.HTTPConnection(*place(server), timeout=30)) as connection:
        begun = time.monotonic()
        for _ in range(50):
            connection.request("GET", "/health")
            connection.getresponse().read()
        assert time.monotonic() - begun < 50 * 0.02


def test_other_pages_may_read_answers_only_where_they_are_named(server):
    mine, others = "http://page.example", "http://other.example"
    for origin, allowed in ((mine, mine), (others, None)):
        asks = {"Origin": origin, "Access_Control_Request_Method": "POST"}
        status, headers, _ = ask(server, "OPTIONS", "/v1/completions", **asks)
        assert headers.get("access-control-allow-origin") == allowed and status == (200 if allowed else 400)
        assert ask(server, "GET", "/health", Origin=origin)[1].get("access-control-allow-origin") == allowed


def test_metrics_count_what_was_done(server, client):
    before = {name: measured(server, name) for name in ("generated_tokens_total", "prompt_tokens_total")}
    made = client.completions.create(**LONG | {"max_tokens": 9, "n": 2})
    assert measured(server, "generated_tokens_total") - before["generated_tokens_total"] == 18
    assert measured(server, "prompt_tokens_total") - before["prompt_tokens_total"] == made.usage.prompt_tokens
    assert measured(server, "tokens_per_second") > 0
    assert measured(server, "cache_blocks") == 100
    assert measured(server, "time_to_first_token_seconds_count") > 0


def test_told_to_end_it_answers_those_who_run_and_refuses_others(served):
    with running(served, Settings(NAME)) as server:
        stream = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x").completions.create(**LONG, stream=True)
        first = next(iter(stream))
        waiting = http.client.HTTPConnection(*place(server), timeout=30)
        waiting.connect()
        server.lead.end()
        assert until(lambda: server.lead.told_to_end.is_set())
        statuses = set()
        body = json.dumps(LONG | {"max_tokens": 1})
        waiting.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        statuses.add(waiting.getresponse().status)
        assert statuses == {503}
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        server.thread.join(30)
        assert not server.thread.is_alive()
        waiting.close()


def test_the_drain_has_an_end(served):
    with running(served, Settings(NAME, drain_seconds=0.0)) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0)
        caught: list[Exception] = []

        def whole() -> None:
            with pytest.raises(openai.InternalServerError) as error:
                client.completions.create(**LONG, n=4)
            caught.append(error.value)

        thread = threading.Thread(target=whole)
        thread.start()
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        server.lead.end()
        with pytest.raises(openai.APIError, match="about to end"):
            list(stream)
        thread.join(30)
        assert [error.status_code for error in caught] == [503]


def test_a_model_that_fails_ends_the_server_with_its_reason(served, monkeypatch):
    with pytest.raises(RuntimeError, match="the device is gone"), running(served, Settings(NAME)) as server:
        monkeypatch.setattr(server.lead.batch.share.engine, "step", fail)
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**LONG)
        assert caught.value.status_code == 500
        server.thread.join(30)


def fail() -> None:
    raise RuntimeError("the device is gone")


def test_settings_that_let_nothing_through_are_refused():
    for wrong in ({"queue": -1}, {"prompt": 0}, {"output": 0}, {"body": 0}, {"key": ""}, {"key": "ü"}, {"key": "a\nb"}):
        with pytest.raises(UsageError, match=f"--(api-|max-)?{next(iter(wrong))}"):
            Settings(NAME, **wrong)


def test_a_model_without_a_template_continues_prompts_alone(served):
    assert template_of(served.opened.tokenizer, None).source == TEMPLATE
    with running(replace(served, template=None), Settings(NAME)) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x"}])
        assert client.completions.create(model=NAME, prompt="x", max_tokens=1).choices
