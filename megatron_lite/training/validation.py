"""The losses of the validation sets, each read by all ranks together as training batches are."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from megatron_lite.config import TrainConfig
from megatron_lite.data.build import ValidationSet
from megatron_lite.data.samples import Samples
from megatron_lite.device import to_device
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer


class Validation:
    def __init__(self, sets: Sequence[ValidationSet], trainer: Trainer, end_of_document: int | None):
        self.sets, self.trainer, self.end_of_document = sets, trainer, end_of_document

    def losses(self, step: int) -> dict[str, float] | None:
        """Mean loss over each set, in nats a token; None where no validation is due after `step`.

        After the last step the whole of each set is read, else at most `valid_batches` global batches.
        """
        train = self._train
        last = step == train.steps
        if not self.sets or not (last or (train.valid_every and step % train.valid_every == 0)):
            return None
        return {one.name: self._mean_loss(one.samples, None if last else train.valid_batches) for one in self.sets}

    def mean(self, losses: dict[str, float]) -> float:
        """The mean of the sets' losses by their weights."""
        total = sum(one.weight for one in self.sets)
        return sum(one.weight * losses[one.name] for one in self.sets) / total

    @property
    def _train(self) -> TrainConfig:
        return self.trainer.config.train

    def _mean_loss(self, samples: Samples, most: int | None) -> float:
        """Over the counted tokens of at most so many global batches."""
        batches = math.ceil(len(samples) / self._train.global_batch_size)
        total = count = 0.0
        for batch in range(batches if most is None else min(batches, most)):
            rows = self._my_rows(samples, batch)
            result = self.trainer.evaluate(microbatches_of(rows, self.trainer.config, self.end_of_document))
            total += result.loss.item() * result.count.item()
            count += result.count.item()
        return total / count

    def _my_rows(self, samples: Samples, batch: int) -> torch.Tensor:
        """This rank's rows of a global batch. Rows past the end hold -1 alone, which is counted nowhere."""
        mesh, local = self.trainer.mesh, self.trainer.resolved.local_batch_size
        first = batch * self._train.global_batch_size + mesh.coordinate["data"] * local
        rows = np.full((local, self._train.sequence_length + 1), -1, dtype=np.int64)
        there = min(local, len(samples) - first)
        if there > 0:
            rows[:there] = samples.read(first, there)
        return to_device(rows, mesh.device)
