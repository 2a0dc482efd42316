"""Small runs after pretraining on made dialogues and pairs, in a pool's ranks or as a user starts them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from support.runs import world_here
from support.text import WORDS, train_small_tokenizer

from megatron_lite.alignment.arguments import config_of
from megatron_lite.alignment.run import align
from megatron_lite.config import resolve

VOCABULARY = 400
SECTIONS = {"sft": {}, "reward": {}, "dpo": {"beta": 0.5}}


def write_rows(directory: Path, count: int = 20) -> Path:
    """A tokenizer, dialogues and pairs of very unequal lengths."""
    train_small_tokenizer(directory, VOCABULARY)
    for part, seed in (("train", 1), ("valid", 2)):
        rng = np.random.default_rng(seed)
        some = count if part == "train" else count // 3
        write_lines(directory / f"dialogues_{part}.jsonl", [{"messages": dialogue(rng)} for _ in range(some)])
        write_lines(directory / f"pairs_{part}.jsonl", [pair(rng) for _ in range(some)])
    return directory


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(rng: np.random.Generator, most: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


def dialogue(rng: np.random.Generator) -> list[dict[str, str]]:
    turns = int(rng.integers(1, 4))
    roles = ("user", "assistant") * turns
    return [{"role": role, "content": words(rng, 2 + int(rng.integers(1, 12)))} for role in roles]


def pair(rng: np.random.Generator) -> dict[str, str]:
    """The longer answer is preferred."""
    few, many = words(rng, 4), words(rng, 4) + " " + words(rng, 9)
    return {"prompt": words(rng, 6), "chosen": many, "rejected": few}


def tree_of(algorithm: str, run_dir: Path, data_dir: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of the small model; `changes` are whole dotted keys with dots written as `__`."""
    rows = "dialogues" if algorithm == "sft" else "pairs"
    tree: dict[str, Any] = {
        "model": {
            "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        },
        "parallel": {"zero_regather": "microbatch"},
        "data": {
            "train": [{"path": str(data_dir / f"{rows}_train.jsonl")}],
            "valid": [{"path": str(data_dir / f"{rows}_valid.jsonl")}],
            "tokenizer": str(data_dir / "small.model"), "workers": 1, "overlong": "cut",
        },
        "optim": {"lr": 0.01, "warmup_steps": 2},
        "train": {
            "steps": 6, "global_batch_size": 4, "micro_batch_size": 1, "sequence_length": 128, "dtype": "float64",
            "valid_every": 3, "run_dir": str(run_dir), "initializer_range": 0.2, "timeout": 60,
        },
        "checkpoint": {"every": 3},
        algorithm: SECTIONS[algorithm],
    }  # fmt: skip
    for key, value in changes.items():
        *sections, name = key.split("__")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[name] = value
    return tree


def run_align(algorithm: str, tree: dict[str, Any], world: int) -> str:
    """One rank's part of a run; called in a pool's process."""
    config = config_of(tree, algorithm)  # type: ignore[arg-type]
    return align(config, resolve(config, world), world_here(world))
