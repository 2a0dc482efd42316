"""Stores of made samples, and configurations of runs over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.layouts import Layout, Tensors, assemble, build_trainer, owned_blocks
from support.pairs import Pair, microbatch, packed, pair

from megatron_lite.alignment.store import Segment, Store, open_store
from megatron_lite.alignment.store_writer import StoreWriter
from megatron_lite.config import AlignedConfig, config_from_tree
from megatron_lite.data.sidecar import TokenizerIdentity

VOCABULARY = 61
SINGLE = Layout()


def segment(tokens: Sequence[int], trained: Sequence[int]) -> Segment:
    return Segment(np.array(tokens), np.array(trained, dtype=bool))


def made(length: int, random: np.random.Generator, share: float = 0.5, least: int = 0) -> Segment:
    """Random tokens from `least` on, of which about a `share` is trained, the last one always."""
    trained = random.random(length) < share
    trained[0], trained[-1] = False, length > 1
    return Segment(random.integers(least, VOCABULARY, length), trained)


def dialogues(lengths: Sequence[int], seed: int = 0, **how: Any) -> list[list[Segment]]:
    random = np.random.default_rng(seed)
    return [[made(length, random, **how)] for length in lengths]


def pairs(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[list[Segment]]:
    random = np.random.default_rng(seed)
    return [[made(length, random) for length in both] for both in lengths]


def write_store(prefix: Path, samples: Sequence[Sequence[Segment]], margins: Sequence[float] | None = None) -> Store:
    columns = ["row"] if margins is None else ["row", "margin"]
    with StoreWriter(prefix, TokenizerIdentity("0" * 64, VOCABULARY, 0)) as writer:
        for row, sample in enumerate(samples):
            numbers = {"row": float(row)} | ({} if margins is None else {"margin": margins[row]})
            writer.add(sample, numbers)
        writer.finish("key", columns, {})
    return open_store(prefix)


def aligned(
    layout: Layout = SINGLE, algorithm: str = "sft", data: dict[str, Any] | None = None, **train: Any
) -> AlignedConfig:
    """The small model's configuration of a run after pretraining."""
    tree = layout.config(**({"z_loss": 0.0} | train)).model_dump(mode="json")
    config = config_from_tree(tree | {"data": data or {}, algorithm: {}})
    assert isinstance(config, AlignedConfig)
    return config


def store_of_pairs(prefix: Path, pairs: Sequence[Pair]) -> Store:
    samples = [
        [Segment(half.tokens.numpy(), half.trained.numpy()) for half in (one.chosen, one.rejected)] for one in pairs
    ]
    return write_store(prefix, samples, [one.margin for one in pairs])


def together_and_apart(layout: Layout) -> list[tuple[dict[str, float], Tensors]]:
    """(numbers, gradients) of eight pairs in one microbatch, and of the same in eight."""
    rows = [[pair(number)] for number in range(8)]
    # Of unequal lengths: a mean of the eight's means would differ.
    apart = [packed([row], 24 + 8 * (number % 2)) for number, row in enumerate(rows)]
    found = []
    for batches in ([packed(rows, 24)], apart):
        trainer = build_trainer(layout, batch=microbatch(0))
        numbers = {name: number.item() for name, number in trainer.gradients(batches).numbers.items()}
        found.append((numbers, assemble([owned_blocks(trainer, "gradient")])))
    return found
