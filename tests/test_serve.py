"""The command, as a process of its own and under torchrun."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import openai
import pytest
from support.serving import NAME, save_small

WAY = {"model": NAME, "prompt": "the model", "temperature": 1.3, "seed": 5, "max_tokens": 20}
LONG = {**WAY, "max_tokens": 180, "logit_bias": {"2": -100, "3": -100}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("served"))


def torchrun(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process, and its address."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving small at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="key", max_retries=0, timeout=60)


def test_sigterm_ends_it_with_code_0_when_running_requests_are_answered(run):
    command = ["-m", "megatron_lite.serve", str(run), "--port", "0", "--api-key", "key", "--cache-gib", "0.01"]
    with started(*command) as (process, address):
        client = client_of(address)
        assert client.completions.create(**WAY).choices[0].finish_reason == "length"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/v1/models")
        stream = iter(client.completions.create(**LONG, stream=True))
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_an_address_that_is_taken_is_one_line_and_exit_code_2(run):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "megatron_lite.serve", str(run), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: --host 127.0.0.1 --port {port}: cannot listen there: .*\n", done.stderr)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--api-key", "ü"], "--api-key: must be printable ASCII"),
        (["--port", "70000"], "--port 70000: must be 0 to 65535"),
        (["--batch", "0"], "--batch 0: must be 1 or more"),
        (["--cache-gib", str(2**-19)], "--cache-gib 1.91e-06: a sequence of 192 tokens takes"),
        (["--max-output", "0"], "--max-output 0: must be 1 or more"),
        (["--compare", "p.jsonl"], "--compare needs --judgements too"),
        (["--judgements", "o.jsonl"], "--judgements needs --compare too"),
        (["--compare", "a.jsonl", "--judgements", "./a.jsonl"], "--judgements a.jsonl: must be another file"),
        (["--compare", "p", "--judgements", "o"], "--judgements o: must end in .jsonl"),
        (["--compare", "p", "--judgements", "o.jsonl", "--criteria", "a,,b"], "--criteria '': must be words"),
        (["--compare", "p", "--judgements", "o.jsonl", "--compare-temperature", "0"], "temperature 0: must be above 0"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_one_sentence(run, options, line, monkeypatch):
    from megatron_lite import serve
    from megatron_lite.errors import UsageError

    monkeypatch.setattr(sys, "argv", ["serve", str(run), *options])
    with pytest.raises(UsageError, match=re.escape(line)):
        serve.main()


def test_rows_that_nobody_can_judge_are_one_line_and_exit_code_3_before_a_model_is_opened(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p"}\n{"prompt": "p", "chosen": "a"}\n')
    command = [sys.executable, "-m", "megatron_lite.serve", str(tmp_path / "none"), "--compare", str(rows)]
    done = subprocess.run([*command, "--judgements", str(tmp_path / "o.jsonl")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        done.stderr.startswith(f"error: {rows} line 2 has chosen: must have answers") and done.stderr.count("\n") == 1
    )
    assert list(tmp_path.iterdir()) == [rows]


@pytest.mark.nightly
@pytest.mark.parametrize("launch", [[], torchrun(2)])
def test_a_server_that_is_killed_has_lost_no_judgement_and_goes_on_from_them(run, tmp_path, launch):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"the model {number}"}) + "\n" for number in range(6)))
    serve = [
        *launch,
        "-m",
        "megatron_lite.serve",
        str(run),
        "--port",
        "0",
        "--cache-gib",
        "0.01",
        "--compare",
        str(rows),
    ]
    command = [*serve, "--judgements", str(out), "--criteria", "helpful", "--compare-tokens", "12"]

    def ask(path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{address}/compare/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answered:
            return json.load(answered)

    judged = []
    for _ in range(2):
        with started(*command) as (process, address):
            shown = ask("next?annotator=Ada")
            assert shown["judged"] == len(judged)
            for verdict in ("first", "second"):
                judged.append(shown[verdict])
                body = {"annotator": "Ada", "pair": shown["pair"], "judgements": {"helpful": verdict}}
                shown = ask("judge", body)
            if launch:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                subprocess.run(["kill", "-9", *children], check=False)
                process.wait(60)
            process.kill()
            process.wait()
        assert [json.loads(line)["chosen"] for line in out.read_bytes().splitlines()] == judged


@pytest.mark.nightly
@pytest.mark.parametrize(("ranks", "keys"), [(4, ["parallel.tensor=2", "parallel.pipeline=2"]), (2, [])])
def test_under_torchrun_it_answers_alike_drains_and_ends_every_rank(run, ranks, keys):
    serve = ["-m", "megatron_lite.serve", str(run), "--port", "0", "--cache-gib", "0.01"]
    with started(*serve) as (_, address):
        truth = client_of(address).completions.create(**WAY, n=4).choices
    with started(*torchrun(ranks), *serve, *keys) as (process, address):
        client = client_of(address)
        assert [one.text for one in client.completions.create(**WAY, n=4).choices] == [one.text for one in truth]
        stream = iter(client.completions.create(**LONG, stream=True))
        first = next(stream)
        process.send_signal(signal.SIGTERM)  # torchrun tells every rank
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        process.wait(60)
        said = process.stderr.read()
        assert "[rank" not in said and "error:" not in said, said  # torchrun's own end is a traceback


@pytest.mark.nightly
def test_a_rank_that_is_killed_ends_all_others(run):
    serve = ["-m", "megatron_lite.serve", str(run), "--port", "0", "--cache-gib", "0.01", "parallel.tensor=2"]
    with started(*torchrun(2), *serve) as (process, address):
        client = client_of(address)
        stream = iter(client.completions.create(**LONG, stream=True, n=8))
        next(stream)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [one for one in children if b"megatron_lite.serve" in Path(f"/proc/{one}/cmdline").read_bytes()]
        assert len(ranks) == 2
        subprocess.run(["kill", "-9", ranks[1]], check=True)
        with pytest.raises(openai.APIError):
            json.dumps([str(chunk) for chunk in stream])
        assert process.wait(60) == 1
        assert not any(Path(f"/proc/{one}").exists() for one in ranks)
        said = process.stderr.read()
        assert "error: serve: another rank is gone without a word" in said and "[rank0]: Traceback" not in said, said
