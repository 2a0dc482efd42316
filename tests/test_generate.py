import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.generation import ONE, loaded
from support.layouts import Layout, build_trainer
from support.text import train_small_tokenizer

from megatron_lite import generate
from megatron_lite.checkpoint import Checkpoint, open_checkpoint, save
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.convert import convert
from megatron_lite.inference.engine import Engine
from megatron_lite.inference.generation import sizes_for
from megatron_lite.inference.requests import Completion, Limits, Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.inference.text import find_tokenizer


def save_run(run_dir: Path, tokenizer: SentencePieceTokenizer, vocab_size: int, named: str | None) -> None:
    """run_dir/checkpoints/step_1 and step_2 of an untrained model whose configuration names its tokenizer so."""
    config = Layout(layers=2).config(sequence_length=64)
    changes = {
        "model": config.model.model_copy(update={"vocab_size": vocab_size}),
        "data": config.data.model_copy(update={"tokenizer": named}),
    }
    trainer = build_trainer(Layout(layers=2), config=config.model_copy(update=changes))
    for step in (1, 2):
        save(run_dir / "checkpoints", trainer, step, 12 * step, tokenizer=tokenizer if named else None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """tokenizer/small.model, and runs/one whose configuration names it relatively."""
    base = tmp_path_factory.mktemp("base")
    (base / "tokenizer").mkdir()
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(base / "tokenizer"))
    save_run(base / "runs" / "one", tokenizer, tokenizer.vocab_size + 9, "tokenizer/small.model")
    return base


def call(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    generate.main()
    return capsys.readouterr().out


def complete(run: Path, prompt: str, sampling: Sampling, count: int, **others) -> list[Completion]:
    """By the engine, without the command."""
    checkpoint = open_checkpoint(run, ONE)
    model, tokenizer = loaded(checkpoint), find_tokenizer(checkpoint, None)
    ids = tuple(tokenizer.encode(prompt) or [tokenizer.eod_id])
    limits = Limits(count, tokenizer.eod_id, tokenizer.vocab_size, stop_strings=others.pop("stops", ()))
    request = Request(**{"number": 0, "seed": 0} | others, prompt=ids, limits=limits, sampling=sampling)
    return Engine(model, sizes_for([request], model.longest), tokenizer.decode).run([request])[0]


def launch(directory: Path, world: int, *arguments: str) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*torchrun, "-m", "megatron_lite.generate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "prompts.jsonl"
    rows = [
        {"prompt": "the model", "id": 7},
        {"prompt": ""},
        {"prompt": "bytes of a shard"},
        {"prompt": "a"},
        {"prompt": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


WAY = ["--max-new-tokens", "6", "-n", "2", "--logprobs", "--seed", "3", "--temperature", "1.2"]


@pytest.fixture(scope="module")
def answers(base, rows) -> list[dict]:
    """What each row gives, each by itself in an engine."""
    found = []
    for number, line in enumerate(rows.read_text().split("\n")[:-2]):
        row = json.loads(line)
        asked = {"number": number, "seed": 3, "n": 2, "log_probabilities": 0}
        completions = complete(base / "runs" / "one", row["prompt"], Sampling(1.2), 6, **asked)
        made = [
            {"text": one.text, "tokens": one.ids, "logprobs": [t.log_probability for t in one.tokens],
             "finish_reason": one.finish}
            for one in completions
        ]  # fmt: skip
        found.append({**row, "completions": made})
    return found


def assert_same(lines: str, answers: list[dict]) -> None:
    """To the bit, but log-probabilities to rounding."""
    found = [json.loads(line) for line in lines.splitlines()]
    assert len(found) == len(answers)
    for ours, truth in zip(found, answers, strict=True):
        for one, other in zip(ours["completions"], truth["completions"], strict=True):
            assert one.pop("logprobs") == pytest.approx(other["logprobs"], rel=0, abs=1e-12)
            assert one == {name: value for name, value in other.items() if name != "logprobs"}
        assert {**ours, "completions": 0} == {**truth, "completions": 0}


def test_the_command_prints_the_prompt_with_its_continuation(base, tmp_path):
    command = [sys.executable, "-m", "megatron_lite.generate", str(base / "runs" / "one")]
    done = subprocess.run(
        [*command, "--prompt", "the model reads", "--max-new-tokens", "5"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the model reads") and len(done.stdout) > len("the model reads\n")
    assert done.stdout.endswith("\n")


def test_what_is_no_checkpoint_is_one_line_and_exit_code_3(tmp_path):
    command = [sys.executable, "-m", "megatron_lite.generate", str(tmp_path / "none"), "--prompt", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"error: .*none is no model: it must be .*\n", done.stderr)


def test_a_run_means_its_newest_checkpoint_and_a_step_itself(base, monkeypatch, capsys, tmp_path):
    shutil.copytree(base / "runs" / "one", tmp_path / "runs" / "one")
    os.truncate(tmp_path / "runs" / "one" / "checkpoints" / "step_2" / "index.json", 10)
    options = ("--prompt", "a shard", "--max-new-tokens", "3", "--tokenizer", str(base / "tokenizer" / "small.model"))
    step_1 = tmp_path / "runs" / "one" / "checkpoints" / "step_1"
    text = call(monkeypatch, capsys, str(step_1), *options)
    assert text.startswith("a shard")
    assert call(monkeypatch, capsys, str(tmp_path / "runs" / "one"), *options) == text  # step_2 is passed over
    with pytest.raises(DataError, match="no index of its checkpoints can be read"):
        call(monkeypatch, capsys, str(step_1.with_name("step_2")), *options)


def test_the_options_reach_the_sampler(base, monkeypatch, capsys):
    run = base / "runs" / "one"
    (one,) = complete(run, "bytes", Sampling(1.5, top_k=50, top_p=0.9), 8, seed=11)
    options = "--temperature 1.5 --top-k 50 --top-p 0.9 --max-new-tokens 8 --seed 11 --prompt bytes".split()
    assert call(monkeypatch, capsys, str(run), *options) == f"bytes{one.text}\n"
    way = Sampling(1.5, min_p=0.001, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2)
    whole, stop = (complete(run, "bytes", way, 30, seed=11, stops=stops)[0].text for stops in ((), ("e",)))
    assert "e" in whole and stop == whole[: whole.index("e")]
    options = (
        "--temperature 1.5 --min-p 0.001 --repetition-penalty 1.2 --presence-penalty 0.3 --frequency-penalty 0.2 "
        "--max-new-tokens 30 --seed 11 --prompt bytes --stop e --stop zzz"
    ).split()
    assert call(monkeypatch, capsys, str(run), *options) == f"bytes{stop}\n"
    (greedy,) = complete(run, "", Sampling(0), 8)
    options = "--temperature 0 --max-new-tokens 8 --prompt".split()
    assert call(monkeypatch, capsys, str(run), *options, "") == f"{greedy.text}\n"


def test_a_bias_forces_a_token_and_a_stop_token_ends_with_it(base, monkeypatch, capsys):
    options = "--prompt bytes --logit-bias 40=1e9 --max-new-tokens 3 --top-logprobs 2".split()
    (one,) = json.loads(call(monkeypatch, capsys, str(base / "runs" / "one"), *options))["completions"]
    assert one["tokens"] == [40] * 3 and one["finish_reason"] == "length"
    assert [len(likely) for likely in one["top_logprobs"]] == [2] * 3
    assert all(mine <= likely[0][1] for mine, likely in zip(one["logprobs"], one["top_logprobs"], strict=True))
    options += ["--stop-token", "40"]
    (one,) = json.loads(call(monkeypatch, capsys, str(base / "runs" / "one"), *options))["completions"]
    assert (one["tokens"], one["finish_reason"]) == ([40], "stop")


def test_samples_of_one_prompt_come_one_after_the_other(base, monkeypatch, capsys):
    run = base / "runs" / "one"
    both = complete(run, "bytes", Sampling(), 8, n=2)
    said = call(monkeypatch, capsys, str(run), "--prompt", "bytes", "--n", "2", "--max-new-tokens", "8")
    assert said == "\n\n".join(f"bytes{one.text}" for one in both) + "\n"


def test_prompts_of_a_file_are_answered_in_order_in_a_batch_of_any_size(
    base, rows, answers, monkeypatch, capsys, tmp_path
):
    run = str(base / "runs" / "one")
    assert_same(call(monkeypatch, capsys, run, "--prompts", str(rows), *WAY), answers)
    output = tmp_path / "answers.jsonl"
    output.write_text("an earlier one")
    said = call(monkeypatch, capsys, run, "--prompts", str(rows), *WAY, "--batch", "3", "--output", str(output))
    assert said == "" and list(tmp_path.iterdir()) == [output]
    assert_same(output.read_text(), answers)


def test_two_pipeline_stages_and_a_hugging_face_directory_give_the_same_answers(base, rows, answers, tmp_path):
    step = base / "runs" / "one" / "checkpoints" / "step_2"
    convert(step, tmp_path / "hf", "hf")
    layout = ["parallel.pipeline=2", "parallel.virtual_stages=1", "kernels.backend=torch"]
    done = launch(tmp_path, 2, "hf", "--prompts", str(rows), *WAY, "--output", "answers.jsonl", *layout)
    assert done.returncode == 0, done.stderr
    assert_same((tmp_path / "answers.jsonl").read_text(), answers)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "layout",
    [["parallel.tensor=2"], ["parallel.tensor=2", "parallel.pipeline=2"], [], ["parallel.zero_stage=3"],
     ["parallel.pipeline=2", "parallel.schedule=zb_v", "parallel.virtual_stages=2"]],
    ids=" ".join,
)  # fmt: skip
def test_every_layout_gives_the_same_answers(base, rows, answers, tmp_path, layout):
    run = str(base / "runs" / "one")
    done = launch(tmp_path, 4, run, "--prompts", str(rows), *WAY, "--output", "answers.jsonl", *layout)
    assert done.returncode == 0, done.stderr
    assert_same((tmp_path / "answers.jsonl").read_text(), answers)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--prompt", "x", "train.dtype=float32"], UsageError, "'train.dtype=float32': must begin with parallel"),
        (["--prompt", "x", "parallel.tensor=3"], UsageError, "parallel.tensor = 3: must divide model"),
        (["--prompt", "x", "parallel.pipeline=2"], UsageError, "world size = 1: must be a multiple of 2"),
        (["--prompt", "x" * 300], UsageError, r"--prompt: the prompt has \d+ tokens: must have 1 to 63"),
        (["--prompt", "x", "--top-p", "1.5"], UsageError, "top_p = 1.5: must be above 0"),
        (["--prompt", "x", "--n", "0"], UsageError, "n = 0: must be 1 or more"),
        (["--prompt", "x", "--logprobs", "--batch", "0"], UsageError, "--batch 0: must be 1 or more"),
        (["--prompt", "x", "--max-new-tokens", "0"], UsageError, "max_new_tokens = 0: must be 1 or more"),
        (["--prompt", "x", "--output", "none/there"], UsageError, "--output none/there: must be a file in a directory"),
        (["--prompt", "x", "--top-logprobs", "0"], UsageError, "--top-logprobs 0: must be 1 or more"),
        (["--prompt", "x", "--logit-bias", "9999=1"], UsageError, "--prompt: logit_bias has token id 9999"),
        (["--prompt", "x", "--chat-template", str(Path(__file__))], UsageError, "--chat-template is for messages"),
        (["--prompts", "none.jsonl"], DataError, "--prompts none.jsonl: No such file"),
        (["--prompts", "LINE{"], DataError, "rows.jsonl:2 is no JSON"),
        (["--prompts", 'LINE{"text": "x"}'], DataError, 'rows.jsonl:2 must hold either "prompt", a text, or'),
        (["--prompts", 'LINE{"messages": []}'], DataError, "rows.jsonl:2: tokenizer .* has no chat template: give one"),
        (["--prompts", 'LINE{"prompt": "' + "x" * 300 + '"}'], UsageError, "rows.jsonl:2: the prompt has"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_written(
    base, monkeypatch, capsys, tmp_path, arguments, error, said
):
    if arguments[1].startswith("LINE"):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "x"}\n' + arguments[1].removeprefix("LINE"))
        arguments = [arguments[0], str(path), "--output", str(tmp_path / "out")]
    with pytest.raises(error, match=said):
        call(monkeypatch, capsys, str(base / "runs" / "one"), *arguments)
    assert capsys.readouterr().out == "" and not list(tmp_path.glob("out*"))


def test_messages_are_continued_where_the_template_lets_the_assistant_speak(base, monkeypatch, capsys, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}a:")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "the</s>"}]}))
    run = base / "runs" / "one"
    options = ["--prompts", str(path), "--chat-template", str(template), "--max-new-tokens", "4", "--temperature", "0"]
    row = json.loads(call(monkeypatch, capsys, str(run), *options))
    tokenizer = find_tokenizer(open_checkpoint(run, ONE), None)
    ids = [*tokenizer.encode("user: the</s>"), tokenizer.eod_id, *tokenizer.encode("a:")]
    request = Request(0, tuple(ids), Limits(4, tokenizer.eod_id, tokenizer.vocab_size), Sampling(0))
    model = loaded(open_checkpoint(run, ONE))
    truth = Engine(model, sizes_for([request], model.longest), tokenizer.decode).run([request])[0][0]
    assert row["completions"][0]["tokens"] == truth.ids
    assert row["prompt"] == "user: the</s></s>a:" and row["messages"][0]["role"] == "user"


def test_another_tokenizer_is_refused(base, tmp_path):
    other = train_small_tokenizer(tmp_path, vocab_size=390)
    with pytest.raises(DataError, match=r"small.model has sha256 .*was trained with .*small.model"):
        find_tokenizer(open_checkpoint(base / "runs" / "one", ONE), str(other))


def test_the_tokenizer_of_a_checkpoint_that_carries_none_is_where_the_run_had_it(base, monkeypatch):
    carried = find_tokenizer(checkpoint := open_checkpoint(base / "runs" / "one", ONE), None)
    assert carried.path == str(checkpoint.path)
    monkeypatch.setattr(Checkpoint, "tokenizer", None)
    recorded = find_tokenizer(checkpoint, None)
    assert (recorded.path, recorded.identity) == (str(base / "tokenizer" / "small.model"), carried.identity)


def test_a_tokenizer_that_is_gone_or_was_never_named_is_asked_for(base, tmp_path, monkeypatch):
    shutil.copytree(base / "runs", tmp_path / "runs")
    find_tokenizer(open_checkpoint(tmp_path / "runs" / "one", ONE), None)  # it is carried
    monkeypatch.setattr(Checkpoint, "tokenizer", None)
    with pytest.raises(DataError, match=r"tokenizer/small.model .* is neither here nor at or above .*--tokenizer"):
        find_tokenizer(open_checkpoint(tmp_path / "runs" / "one", ONE), None)
    tokenizer = SentencePieceTokenizer(base / "tokenizer" / "small.model")
    save_run(tmp_path / "bare", tokenizer, tokenizer.vocab_size, None)
    with pytest.raises(UsageError, match=r"without data.tokenizer: give its tokenizer with --tokenizer"):
        find_tokenizer(open_checkpoint(tmp_path / "bare", ONE), None)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(base, tmp_path):
    tokenizer = SentencePieceTokenizer(base / "tokenizer" / "small.model")
    save_run(tmp_path / "small", tokenizer, 100, None)
    with pytest.raises(DataError, match=rf"has {tokenizer.vocab_size} tokens, .* knows 100"):
        find_tokenizer(open_checkpoint(tmp_path / "small", ONE), tokenizer.path)
