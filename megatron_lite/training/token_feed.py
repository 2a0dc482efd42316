"""Pretraining's feed: samples of a token stream, cut into microbatches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from megatron_lite.config import Config, Resolved, batch_size_after
from megatron_lite.data.build import ValidationSet
from megatron_lite.data.loader import Loader
from megatron_lite.data.samples import Samples
from megatron_lite.device import to_device
from megatron_lite.mesh import Mesh
from megatron_lite.model.sequences import Draws, Sequences
from megatron_lite.model.splitmix import key_of, mixed
from megatron_lite.training.boundaries import microbatches_of


class TokenFeed:
    """`end_of_document` is the token that ends one (None: documents change nothing)."""

    def __init__(self, samples: Samples, config: Config, resolved: Resolved, mesh: Mesh, end_of_document: int | None):
        self.config, self.mesh, self.end_of_document = config, mesh, end_of_document
        self.loader = Loader(
            samples,
            batch_size=partial(batch_size_after, train=config.train),
            data_rank=mesh.coordinate["data"],
            data_size=resolved.data,
        )

    def size(self, consumed: int) -> int:
        return batch_size_after(consumed, self.config.train)

    def microbatches(self, consumed: int, step: int) -> list[Sequences]:
        rows = to_device(self.loader.batch(consumed), self.mesh.device)
        batches = microbatches_of(rows, self.config, self.end_of_document)
        if not self.config.draws:
            return batches
        first = consumed + self.mesh.coordinate["data"] * len(rows)
        return with_draws(batches, key_of(self.config.train.seed, "draws", step), first)

    def tokens(self, consumed: int) -> int:
        return consumed * self.config.train.sequence_length

    def close(self) -> None:
        self.loader.close()


def with_draws(batches: Sequence[Sequences], key: int, first: int) -> list[Sequences]:
    """The same rows with what random numbers are drawn by: a step's `key`, the sample's number, counted from `first`
    on, and the place in it.
    """
    found = []
    for batch in batches:
        rows, length = batch.tokens.shape
        samples = torch.arange(first, first + rows, device=batch.tokens.device).unsqueeze(1)
        places = torch.arange(length, device=batch.tokens.device).expand(rows, length)
        draws = Draws(mixed(places, mixed(samples, key)), torch.full_like(places, length))
        found.append(replace(batch, draws=draws))
        first += rows
    return found


@dataclass(frozen=True)
class TokenValidation:
    """A validation set in file order."""

    given: ValidationSet
    config: Config
    resolved: Resolved
    mesh: Mesh
    end_of_document: int | None

    @property
    def name(self) -> str:
        return self.given.name

    @property
    def weight(self) -> float:
        return self.given.weight

    def batches(self) -> int:
        return math.ceil(len(self.given.samples) / self.config.train.global_batch_size)

    def microbatches(self, number: int) -> list[Sequences]:
        """Rows past the end hold -1 alone, which is counted nowhere."""
        train, local = self.config.train, self.resolved.local_batch_size
        first = number * train.global_batch_size + self.mesh.coordinate["data"] * local
        rows = np.full((local, train.sequence_length + 1), -1, dtype=np.int64)
        there = min(local, len(self.given.samples) - first)
        if there > 0:
            rows[:there] = self.given.samples.read(first, there)
        return microbatches_of(to_device(rows, self.mesh.device), self.config, self.end_of_document)
