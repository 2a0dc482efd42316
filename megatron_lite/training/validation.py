"""The losses of the validation sets, each read by all ranks together as training batches are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_lite.config import TrainConfig
from megatron_lite.data.build import ValidationSet
from megatron_lite.data.samples import Samples
from megatron_lite.device import to_device
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer
from megatron_lite.training.text_bytes import TextBytes, bits_per_byte


@dataclass(frozen=True)
class Validated:
    """By set: the mean loss in nats a token, and bits per byte of the text, of those sets whose bytes are known."""

    losses: Mapping[str, float]
    bits_per_byte: Mapping[str, float]


class Validation:
    """`text` counts bytes where they are wanted and known (None: elsewhere)."""

    def __init__(
        self, sets: Sequence[ValidationSet], trainer: Trainer, end_of_document: int | None, text: TextBytes | None
    ):
        self.sets, self.trainer, self.end_of_document, self.text = sets, trainer, end_of_document, text

    def after(self, step: int) -> Validated | None:
        """None where no validation is due after `step`.

        After the last step the whole of each set is read, else at most `valid_batches` global batches.
        """
        train = self._train
        last = step == train.steps
        if not self.sets or not (last or (train.valid_every and step % train.valid_every == 0)):
            return None
        losses, bits = {}, {}
        for one in self.sets:
            batches = self._batches(one.samples, None if last else train.valid_batches)
            nats, tokens = self._sum_loss(one.samples, batches)
            losses[one.name] = nats / tokens
            if self.text is not None and (size := self.text.count(one.name, one.samples, batches)):
                bits[one.name] = bits_per_byte(nats, size)
        return Validated(losses, bits)

    def mean(self, values: Mapping[str, float]) -> float:
        """The mean of the sets' numbers by their weights."""
        total = sum(one.weight for one in self.sets)
        return sum(one.weight * values[one.name] for one in self.sets) / total

    def named(self, found: Validated) -> dict[str, float]:
        """All but the mean loss, by names in metrics.jsonl. Bits per byte have a mean where every set has them."""
        numbers = {f"valid_loss/{name}": loss for name, loss in found.losses.items()}
        if found.bits_per_byte.keys() == found.losses.keys():
            numbers["valid_bits_per_byte"] = self.mean(found.bits_per_byte)
        return numbers | {f"valid_bits_per_byte/{name}": bits for name, bits in found.bits_per_byte.items()}

    @property
    def _train(self) -> TrainConfig:
        return self.trainer.config.train

    def _batches(self, samples: Samples, most: int | None) -> int:
        """At most so many global batches."""
        batches = math.ceil(len(samples) / self._train.global_batch_size)
        return batches if most is None else min(batches, most)

    def _sum_loss(self, samples: Samples, batches: int) -> tuple[float, float]:
        """(nats, counted tokens) of so many global batches."""
        total = count = 0.0
        for batch in range(batches):
            rows = self._my_rows(samples, batch)
            result = self.trainer.evaluate(microbatches_of(rows, self.trainer.config, self.end_of_document))
            total += result.loss.item() * result.count.item()
            count += result.count.item()
        return total, count

    def _my_rows(self, samples: Samples, batch: int) -> torch.Tensor:
        """This rank's rows of a global batch. Rows past the end hold -1 alone, which is counted nowhere."""
        mesh, local = self.trainer.mesh, self.trainer.resolved.local_batch_size
        first = batch * self._train.global_batch_size + mesh.coordinate["data"] * local
        rows = np.full((local, self._train.sequence_length + 1), -1, dtype=np.int64)
        there = min(local, len(samples) - first)
        if there > 0:
            rows[:there] = samples.read(first, there)
        return to_device(rows, mesh.device)
