"""What a microbatch is made of: whole sequences, with what an objective wants to know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from megatron_lite.parallel.vocabulary import counted


@dataclass(frozen=True)
class Column:
    """Numbers that an objective wants of every token, [B, S], aligned with the labels; or of every document, [B, D] for
    any D that is not below the most documents of a row.
    """

    name: str
    per: Literal["token", "document"]
    dtype: torch.dtype


@dataclass(frozen=True)
class Draws:
    """By what the random numbers of training are drawn, so that a token has the same wherever it lies.

    keys     int64 [B, S]: random bits of (seed, step, sample, place in the sample)
    lengths  int64 [B, S]: tokens of its sample
    """

    keys: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Sequences:
    """Whole sequences of a microbatch, the same on every tensor, context and pipeline rank of a data rank.

    tokens, labels  int64 [B, S]; labels outside the vocabulary do not count
    documents       int64 [B, S] from 0 on, non-decreasing along a row: attention stays within one (None: a row is one)
    positions       int64 [B, S] below S, by which queries and keys turn (None: each token's place in its row)
    columns         an objective's own numbers
    draws           for dropout and noise (None: there is neither)

    B and S may differ from microbatch to microbatch and from data rank to data rank.
    """

    tokens: Tensor
    labels: Tensor
    vocab_size: int
    documents: Tensor | None = None
    positions: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Draws | None = None

    @property
    def counted(self) -> Tensor:
        """bool [B, S]: which labels count."""
        return counted(self.labels, self.vocab_size)

    def by_document(self, values: Tensor, documents: int) -> Tensor:
        """Sums of values [B, S] over the tokens of each document, [B, D] for D = `documents`, in a fixed order."""
        if self.documents is None:
            return torch.nn.functional.pad(values.sum(1, keepdim=True), (0, documents - 1))
        number = torch.arange(documents, device=values.device)
        belongs = self.documents.unsqueeze(1) == number[:, None]  # [B, D, S]
        return torch.where(belongs, values.unsqueeze(1), 0.0).sum(2)

    def nothing(self) -> "Sequences":
        """As many tokens of which none counts, for a data rank with fewer microbatches than others."""
        return Sequences(
            torch.zeros_like(self.tokens),
            torch.full_like(self.labels, -1),
            self.vocab_size,
            None if self.documents is None else torch.zeros_like(self.documents),
            self.positions,
            {name: torch.zeros_like(values) for name, values in self.columns.items()},
            self.draws,
        )


def padded(batches: Sequence[Sequences], count: int) -> list[Sequences]:
    """The microbatches of a step, filled up to `count`: what the data rank with the most of them has."""
    if not 0 < len(batches) <= count:
        raise ValueError(f"{len(batches)} microbatches: must be 1 to {count}, so many as every data rank runs")
    return [*batches, *(batches[-1].nothing() for _ in range(count - len(batches)))]


def check_columns(sequences: Sequences, columns: Sequence[Column]) -> None:
    """Raises ValueError for a column that an objective wants and the batch has not, or has in another form."""
    rows, length = sequences.tokens.shape
    for column in columns:
        found = sequences.columns.get(column.name)
        if found is None:
            raise ValueError(f"column {column.name} is missing: the objective wants it for every {column.per}")
        fits = found.shape == (rows, length) if column.per == "token" else found.dim() == 2 and len(found) == rows
        if not fits or found.dtype != column.dtype:
            width = length if column.per == "token" else "documents"
            raise ValueError(
                f"column {column.name} is {found.dtype} {list(found.shape)}: must be {column.dtype} [{rows}, {width}], "
                f"a number for every {column.per}"
            )
