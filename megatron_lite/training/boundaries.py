"""What the end of a document changes in a sample: whom attention sees, where positions begin, which labels count.

A document ends with a token of its own, which still belongs to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.config import Config, DataConfig
from megatron_lite.model.sequences import Sequences


@dataclass(frozen=True)
class Boundaries:
    """Which of the three things the token `end` does."""

    end: int
    mask: bool  # attention stays within a document
    reset: bool  # a position counts from its document's first token
    skip: bool  # the label of an end, the first token of the next document, does not count

    @classmethod
    def of(cls, data: DataConfig, end: int | None) -> "Boundaries | None":
        """What the configuration asks of the token `end`; None where that is nothing, or no such token is known."""
        boundaries = (data.document_mask, data.reset_positions, data.eod_mask_loss)
        return cls(end, *boundaries) if end is not None and any(boundaries) else None

    def counted(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Labels [B, S], those that do not count below 0."""
        return labels.masked_fill(tokens == self.end, -1) if self.skip else labels


def document_numbers(tokens: Tensor, end: int) -> Tensor:
    """Which document each position belongs to, int64 [B, S] from 0 on."""
    ends = (tokens == end).long()
    return ends.cumsum(1) - ends


def positions_in(numbers: Tensor) -> Tensor:
    """How far each position is from the first of its document, int64 [B, S]."""
    places = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return places - places.where(begins, 0).cummax(1).values


def microbatches_of(samples: Tensor, config: Config, end_of_document: int | None = None) -> list[Sequences]:
    """Cut a data rank's samples int64 [local batch, S + 1] into microbatches. Ids below 0 are labels that do not count.

    `end_of_document` is the token that ends one (None: documents change nothing, whatever the configuration says).
    """
    boundaries = Boundaries.of(config.data, end_of_document)
    return [
        _sequences(part, config.model.vocab_size, boundaries) for part in samples.split(config.train.micro_batch_size)
    ]


def _sequences(samples: Tensor, vocab_size: int, boundaries: Boundaries | None) -> Sequences:
    tokens, labels = samples[:, :-1], samples[:, 1:]
    if boundaries is None:
        return Sequences(tokens, labels, vocab_size)
    numbers = document_numbers(tokens, boundaries.end)
    return Sequences(
        tokens,
        boundaries.counted(tokens, labels),
        vocab_size,
        documents=numbers if boundaries.mask else None,
        positions=positions_in(numbers) if boundaries.reset else None,
    )
