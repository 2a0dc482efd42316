"""Small pretraining runs on a data set of random tokens, in a pool's ranks or as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors import safe_open
from support.text import train_small_tokenizer

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.launch import World
from megatron_lite.parallel.collectives import default_store
from megatron_lite.parallel.words import Words
from megatron_lite.training.loop import pretrain


def write_tokens(prefix: Path, count: int, vocab_size: int = 61, seed: int = 0) -> None:
    """One data set of documents of 50 tokens."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, count)
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for begin in range(0, count, 50):
            writer.add_document([tokens[begin : begin + 50]])


def write_data(directory: Path, vocab_size: int) -> Path:
    """Training and validation tokens, and a tokenizer of that vocabulary."""
    train_small_tokenizer(directory, vocab_size)
    write_tokens(directory / "train", 2000, vocab_size, seed=1)
    write_tokens(directory / "valid", 500, vocab_size, seed=2)
    return directory


def tree_of(run_dir: Path, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of the small model; `changes` are whole dotted keys with dots written as `__`."""
    tree: dict[str, Any] = {
        "model": {
            "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 61, "tie_word_embeddings": True,
        },
        "parallel": {"zero_regather": "microbatch"},
        "data": {"train": [{"prefix": str(data_dir / "train")}], "valid": [{"prefix": str(data_dir / "valid")}]},
        "optim": {"lr": 0.01, "warmup_steps": 2, "decay_steps": 12},
        "train": {
            "steps": 12, "global_batch_size": 8, "micro_batch_size": 1, "sequence_length": 16, "dtype": "float64",
            "valid_every": 4, "run_dir": str(run_dir), "initializer_range": 0.2, "timeout": 60,
        },
        "checkpoint": {"every": 4},
    }  # fmt: skip
    for key, value in changes.items():
        section, name = key.split("__")
        tree[section][name] = value
    return tree


def run_pretrain(tree: dict[str, Any], world: int) -> str:
    """One rank's part of a run; called in a pool's process."""
    config = config_from_tree(tree)
    return pretrain(config, resolve(config, world), world_here(world))


def world_here(size: int = 1) -> World:
    """What a command has before there is a mesh, in a pool's process or in one by itself."""
    words = Words.over(default_store(), dist.get_rank(), size) if size > 1 else Words.alone()
    return World(torch.device("cpu"), "device: cpu", words, timedelta(seconds=60))


def start_pretrain(tree: dict[str, Any], world: int) -> subprocess.Popen:
    return start("pretrain", tree, world)


def start(command: str, tree: dict[str, Any], world: int) -> subprocess.Popen:
    """Start a run as a user does, in a process group of its own; several processes through torchrun."""
    path = Path(tree["train"]["run_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    words = [sys.executable, *launcher, "-m", f"megatron_lite.{command}", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, start_new_session=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_step(run_dir: Path, step: int, process) -> None:
    """Return once metrics.jsonl has the step."""
    deadline = time.monotonic() + 120
    path = run_dir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"no step {step} in two minutes"
        time.sleep(0.005)


def kill_launcher(process) -> None:
    """SIGKILL torchrun alone, and see its ranks end by themselves."""
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 8
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "ranks train on without their launcher"
        time.sleep(0.05)


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers_of(run_dir: Path) -> list[tuple[Any, ...]]:
    """What two equal runs have in common, for each step."""
    return [
        tuple(line.get(name) for name in ("step", "tokens", "loss", "grad_norm", "lr", "valid_loss"))
        for line in metrics_of(run_dir)
    ]


def tensors_of(checkpoint: Path) -> dict[str, bytes]:
    """Every stored tensor's bytes, by file and key."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                found[f"{path.name}/{key}"] = file.get_tensor(key).view(torch.uint8).numpy().tobytes()
    return found
