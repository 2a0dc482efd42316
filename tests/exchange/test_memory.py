"""A conversion takes one logical parameter's memory and a buffer, however large the model."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

import pytest
import torch
from exchange.models import model_of, tree_of, write_gguf, write_hf
from safetensors.torch import save_file

from megatron_lite.config import ModelConfig
from megatron_lite.exchange import convert
from megatron_lite.exchange.source import shapes_of

SIZES = {
    "8 GB": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 17, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 48000,
    },
    "100 MB": {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 24000,
    },
}  # fmt: skip
BUFFER = 32_000_000  # bytes: a slice of numbers in several forms, tables, and what malloc keeps


def write_large(directory: Path, model: ModelConfig) -> int:
    """A Hugging Face directory of bfloat16 with a file a layer; returns its bytes."""
    directory.mkdir()
    where, total = {}, 0
    shapes = list(shapes_of(model).items())
    for number, begin in enumerate(range(0, len(shapes), 9)):
        file = f"model-{number:05d}.safetensors"
        part = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in shapes[begin : begin + 9]}
        save_file(part, directory / file)
        where |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in part.values())
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (directory / "config.json").write_text(json.dumps(tree_of(model, torch_dtype="bfloat16")))
    return total


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def convert_and_say(*steps: tuple[str, str, str, str | None]) -> None:
    """Run by the tests below in a process of its own: the most memory of its own that each conversion took."""
    model, folder = model_of(), Path(steps[0][1]).with_name("small")
    folder.mkdir()
    weights = {name: torch.zeros(shape) for name, shape in shapes_of(model).items()}
    convert(write_hf(folder / "hf", model, weights), folder / "ours", "ours")  # what code takes is taken now
    convert(folder / "ours", folder / "again", "hf")
    made = [partial(convert, Path(source), Path(target), to, dtype=dtype) for source, target, to, dtype in steps]
    print(json.dumps([most_of(one) for one in made]))


def most_of(action: Callable[[], object]) -> dict[str, float]:
    before = peak = anonymous()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    action()
    seconds = time.perf_counter() - begin
    ended.set()
    thread.join()
    return {"taken": peak - before, "seconds": seconds}


def measured(*steps: tuple[Path, Path, str, str | None]) -> list[dict[str, float]]:
    arguments = [(str(source), str(target), to, dtype) for source, target, to, dtype in steps]
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[1])]}; from exchange import test_memory; "
        f"test_memory.convert_and_say(*{arguments!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def largest_of(model: ModelConfig, itemsize: int) -> int:
    return itemsize * max(map(prod, shapes_of(model).values()))


def test_a_conversion_takes_one_parameter_and_a_buffer(tmp_path):
    model = model_of(**SIZES["100 MB"])
    total = write_large(tmp_path / "hf", model)
    assert total > 4 * largest_of(model, 2) > 8e7
    shallow = model_of(**{**SIZES["100 MB"], "num_hidden_layers": 1})
    weights = {name: torch.zeros(shape) for name, shape in shapes_of(shallow).items()}
    file = write_gguf(tmp_path / "m.gguf", shallow, weights, "Q4_1")
    there, back, out_of_blocks, wide = measured(
        (tmp_path / "hf", tmp_path / "ours", "ours", None),
        (tmp_path / "ours", tmp_path / "again", "hf", None),
        (file, tmp_path / "dequantized", "ours", None),
        (tmp_path / "hf", tmp_path / "wide", "hf", "float32"),
    )
    assert max(there["taken"], back["taken"]) <= largest_of(model, 2) + BUFFER, (there, back)
    assert wide["taken"] <= largest_of(model, 4) + BUFFER, wide
    assert out_of_blocks["taken"] <= largest_of(shallow, 4) + BUFFER, out_of_blocks


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_8_gb_are_converted_in_less_than_1_gb(tmp_path):
    assert write_large(tmp_path / "hf", model_of(**SIZES["8 GB"])) > 8e9
    steps = [("hf", "ours", "ours"), ("ours", "again", "hf")]
    found = measured(*((tmp_path / source, tmp_path / target, to, None) for source, target, to in steps))
    print(found)
    for name in ("hf", "ours", "again"):
        shutil.rmtree(tmp_path / name)
    assert all(one["taken"] < 1e9 for one in found), found
