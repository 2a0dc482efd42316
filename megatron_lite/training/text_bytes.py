"""How many bytes of text a validation's counted labels stand for, which makes bits per byte of its loss.

    bits per byte = sum of -log p in nats / (ln 2 x bytes)

Unlike nats a token it can be compared between tokenizers. Labels are data, the same at every validation and on every
layout, so one rank counts them, once, and nothing is sent for it.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megatron_lite.config import Config
from megatron_lite.data.build import Datasets
from megatron_lite.data.samples import Samples
from megatron_lite.errors import DataError
from megatron_lite.training.boundaries import microbatches_of

log = logging.getLogger("megatron_lite")


@dataclass
class TextBytes:
    """`lengths` int64 [vocab_size]: what each token spells. `found` is what was counted, by data set and batches."""

    config: Config
    end_of_document: int | None
    sets: Mapping[str, Samples]
    lengths: Tensor
    found: dict[tuple[str, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, datasets: Datasets, config: Config) -> "TextBytes | None":
        """None, and a line that says why, where the tokens' bytes are not known."""
        if datasets.tokenizer is None:
            log.info("validation has no bits per byte: data.tokenizer is null, which would say what tokens spell")
            return None
        try:
            known = torch.from_numpy(datasets.tokenizer.byte_lengths())
        except DataError as error:
            log.info("validation has no bits per byte: %s", error)
            return None
        lengths = torch.zeros(config.model.vocab_size, dtype=torch.int64)  # a token that the tokenizer lacks has none
        lengths[: len(known)] = known
        return cls(config, datasets.eod_id, {one.name: one.samples for one in datasets.valid}, lengths)

    def count(self, name: str, batches: int) -> int:
        """Of so many global batches of a validation set."""
        if (name, batches) not in self.found:
            samples, size = self.sets[name], self.config.train.global_batch_size
            firsts = range(0, min(batches * size, len(samples)), size)
            self.found[name, batches] = sum(
                self._of_rows(samples.read(first, min(size, len(samples) - first))) for first in firsts
            )
        return self.found[name, batches]

    def _of_rows(self, rows: np.ndarray) -> int:
        """Of int64 [n, S + 1]."""
        parts = microbatches_of(torch.from_numpy(rows), self.config, self.end_of_document)
        return sum(int(self.lengths[part.labels[part.counted]].sum()) for part in parts)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    return nats / (math.log(2) * text_bytes)
