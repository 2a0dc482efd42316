"""The command: what it says, what it refuses, and what it leaves behind."""

import json
import os
import re
import sys
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from exchange.models import model_of, weights_of, write_gguf, write_hf

from megatron_lite.errors import DataError, UsageError, run_command
from megatron_lite.exchange import compare, convert
from megatron_lite.exchange.verify import in_batches

MODEL = model_of()
WEIGHTS = weights_of(MODEL)


def call(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()
    return capsys.readouterr().out


def test_it_says_what_it_wrote_and_what_it_left_out(tmp_path, monkeypatch, capsys):
    source, target = write_hf(tmp_path / "hf", MODEL, WEIGHTS), tmp_path / "ours"
    (source / "tokenizer.json").write_text("{}")
    said = call(monkeypatch, capsys, source, target, "--to", "ours", "--weights-only", "--max-shard-bytes", "100000")
    size = sum(weight.numel() for weight in WEIGHTS.values())
    files = len(list(target.glob("*.safetensors")))
    assert said.splitlines() == [
        f"Hugging Face directory {source} -> checkpoint {target}: {size:,} parameters in {files} files",
        "left out: tokenizer.json",
    ]


def damage(tmp_path: Path, name: str) -> Path:
    """A source with one thing wrong."""
    files = 3 if "shard" in name else 1
    changes = {"architectures": ["GPTNeoXForCausalLM"]} if name == "unknown architecture" else {}
    weights = dict(WEIGHTS)
    if name == "extra tensor":
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(96)
    if name == "wrong shape":
        weights["model.norm.weight"] = torch.ones(97)
    if name == "missing tensor":
        del weights["lm_head.weight"]
    if name == "another dtype":
        weights["model.norm.weight"] = torch.ones(96, dtype=torch.int64)
    model, head = MODEL, "lm_head.weight"
    if name == "untied":
        model, weights[head] = model_of(tie_word_embeddings=True), weights[head] + 1
    path = write_hf(tmp_path / "hf", model, weights, files, **changes)
    one = path / ("model-00002-of-00003.safetensors" if files == 3 else "model.safetensors")
    if name == "truncated shard":
        os.truncate(one, one.stat().st_size - 1)
    if name == "shard without its table":
        os.truncate(one, 50)
    if name == "missing shard":
        one.unlink()
    if name == "no weights":
        one.rename(path / "pytorch_model.bin")
    if name == "no JSON":
        (path / "config.json").write_text("{")
    if name == "tables that lie":
        data = bytearray(one.read_bytes())
        length = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + length].replace(b'"shape":[61,96]', b'"shape":[60,96]')
        one.write_bytes(bytes(data[:8]) + text + bytes(data[8 + length :]))
    return path


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("truncated shard", r"model-00002-of-00003\.safetensors is cut short or too long: it has \d+ bytes"),
        ("shard without its table", r"is no whole safetensors file: 50 bytes do not hold its table"),
        ("missing shard", r"model-00002-of-00003\.safetensors is missing, though .* lists it"),
        ("wrong shape", r"has model\.norm\.weight with shape \[97\], its configuration makes it \[96\]"),
        ("missing tensor", r"has no tensor lm_head\.weight, which the model needs"),
        ("extra tensor", r"has the tensor model\.layers\.0\.self_attn\.q_proj\.bias, of which this model is not"),
        ("another dtype", r"model\.norm\.weight has the dtype I64; must be one of F64, F32, BF16, F16"),
        ("unknown architecture", r"architectures = GPTNeoXForCausalLM: read are"),
        ("untied", r"ties the output to the embedding, but its lm_head\.weight is not its model\.embed_tokens\.weight"),
        ("no weights", r"has neither model\.safetensors nor .*; pytorch_model\.bin is a pickle, which is not read"),
        ("no JSON", r"config\.json is damaged: it is no JSON"),
        ("tables that lie", r"is damaged: \S+ of shape \[60, 96\] has 23424 bytes"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, name, complaint):
    path = damage(tmp_path, name)
    with pytest.raises(DataError, match=complaint) as caught:
        convert(path, tmp_path / "ours", "ours")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_the_exit_codes(tmp_path, monkeypatch, capsys):
    path = damage(tmp_path, "truncated shard")
    for target, code in ((tmp_path / "ours", 3), (tmp_path, 2)):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", str(path), str(target), "--to", "ours"])
        with pytest.raises(SystemExit) as ended:
            run_command(convert_checkpoint.main)
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (code, "")
        assert re.fullmatch(r"error: [^\n]+\n", said.err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_is_full_and_an_interruption_leave_nothing(tmp_path, monkeypatch):
    path = write_hf(tmp_path / "hf", MODEL, WEIGHTS)
    (tmp_path / "ours.partial").mkdir()  # of a conversion that was killed
    for error, seen in ((OSError(28, "No space left on device"), DataError), (KeyboardInterrupt, KeyboardInterrupt)):

        def stop(*_, error=error):
            raise error

        with monkeypatch.context() as patch, pytest.raises(seen):
            patch.setattr("megatron_lite.exchange.ours.Index.save", stop)
            convert(path, tmp_path / "ours", "ours")
        assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_what_makes_no_sense_is_refused(tmp_path):
    path = write_hf(tmp_path / "hf", MODEL, WEIGHTS)
    convert(path, tmp_path / "ours", "ours")
    with pytest.raises(UsageError, match="is a Hugging Face directory already"):
        convert(path, tmp_path / "again", "hf")
    with pytest.raises(UsageError, match="is a checkpoint already; --weights-only makes one without"):
        convert(tmp_path / "ours", tmp_path / "again", "ours")
    with pytest.raises(UsageError, match="exists: the target must be new"):
        convert(path, tmp_path / "ours", "ours")
    with pytest.raises(UsageError, match="is no directory: the target's must exist"):
        convert(path, tmp_path / "none" / "ours", "ours")
    with pytest.raises(DataError, match="is no model: it must be"):
        convert(tmp_path / "nothing", tmp_path / "again", "ours")
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / ".metadata").touch()
    with pytest.raises(DataError, match=r"checkpoint of Megatron-LM, made of pickles.*docs/exchange\.md"):
        convert(tmp_path / "megatron", tmp_path / "again", "ours")


def test_without_transformers_verifying_says_so_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    text = tmp_path / "text.txt"
    text.write_text("some text")
    path = write_gguf(tmp_path / "m.gguf", MODEL, WEIGHTS)
    with pytest.raises(UsageError, match="transformers, which is not installed"):
        call(monkeypatch, capsys, path, tmp_path / "ours", "--to", "ours", "--verify", text)
    text.write_text("")
    with pytest.raises(UsageError, match="the text is empty"):
        call(monkeypatch, capsys, path, tmp_path / "ours", "--to", "ours", "--verify", text)
    assert not (tmp_path / "ours").exists()


def test_logits_are_compared_token_by_token():
    table = torch.randn(61, 61)
    close = table.clone()
    close[3, 5] += 9e-4
    same = compare(lambda ids: close[ids], lambda ids: table[ids], in_batches(list(range(61)) * 20, context=100))
    assert (same.tokens, same.equal) == (61 * 20, 61 * 20) and 8e-4 < same.largest < 1e-3
    for wrong in (close + 1e-3 * (torch.arange(61) == 60), close * float("nan"), table[:, :60]):
        with pytest.raises(DataError):
            compare(lambda ids, wrong=wrong: wrong[ids], lambda ids: table[ids], in_batches(list(range(61)), 100))


def test_a_conversion_that_fails_its_check_is_not_kept(tmp_path):
    def check(source, written):
        assert json.loads((written / "config.json").read_text())["vocab_size"] == source.model.vocab_size
        raise DataError("another function")

    convert(write_hf(tmp_path / "hf", MODEL, WEIGHTS), tmp_path / "ours", "ours")
    with pytest.raises(DataError, match="another function"):
        convert(tmp_path / "ours", tmp_path / "again", "hf", check=check)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf", "ours"]
