"""Pairs of answers as microbatches of packed documents, and their log-probabilities and scores from a plain model that
reads each document alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from support.reference import hidden, logits
from torch import Tensor

from megatron_lite.model.sequences import Sequences, padded

VOCABULARY, END = 61, 3  # END ends every answer, and fills rows up
SLOTS = 4  # documents of a row at most
MICROBATCHES = 3  # of a step; with two data ranks the second has one fewer, and an empty one


@dataclass(frozen=True)
class Document:
    """tokens int64 [n]; trained bool [n]; what a reference gives it."""

    tokens: Tensor
    trained: Tensor
    reference: float


@dataclass(frozen=True)
class Pair:
    chosen: Document
    rejected: Document
    margin: float


def pair(number: int) -> Pair:
    """A prompt of 1 to 4 tokens, in which an END may stand, and two answers of 1 to 3 tokens and END."""
    random = np.random.default_rng(number)
    prompt = [*random.integers(0, VOCABULARY, random.integers(1, 4)), END][-4:]

    def answered() -> Document:
        answer = [*random.integers(4, VOCABULARY, random.integers(1, 4)), END]
        trained = torch.tensor([False] * len(prompt) + [True] * len(answer))
        return Document(torch.tensor([*prompt, *answer]), trained, -4 * len(answer) + random.normal())

    return Pair(answered(), answered(), float(random.integers(0, 3)))


def rows_of(number: int) -> list[list[Pair]]:
    """Two rows of a microbatch, each of one or two pairs."""
    counts = [1 + number % 2, 1 + number // 2 % 2]
    return [[pair(100 * number + 10 * row + n) for n in range(count)] for row, count in enumerate(counts)]


def packed(rows: Sequence[Sequence[Pair]], length: int) -> Sequences:
    """Documents one after the other, filled up to a length. After a single pair comes an answer that is in none, which
    no comparison may count though its labels do.
    """
    shape = (len(rows), length)
    tokens, labels = torch.full(shape, END), torch.full(shape, -1)
    documents, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    last = torch.zeros(shape, dtype=torch.float64)
    paired, margin, reference = torch.zeros(3, len(rows), SLOTS, dtype=torch.float64)
    for row, pairs in enumerate(rows):
        begin, its = 0, [one for both in pairs for one in (both.chosen, both.rejected)]
        for number, one in enumerate([*its, pair(1000 + row).chosen] if len(pairs) == 1 else its):
            end = begin + len(one.tokens)
            tokens[row, begin:end], documents[row, begin:end] = one.tokens, number
            labels[row, begin : end - 1] = torch.where(one.trained, one.tokens, -1)[1:]
            positions[row, begin:end] = torch.arange(end - begin)
            begin = end
            if number < len(its):
                paired[row, number] = last[row, end - 1] = 1.0
                margin[row, number], reference[row, number] = pairs[number // 2].margin, one.reference
        documents[row, begin:] = documents[row, begin - 1] + 1 if begin else 0
        positions[row, begin:] = torch.arange(length - begin)
    columns = {"paired": paired, "last": last, "margin": margin, "reference": reference}
    return Sequences(tokens, labels, VOCABULARY, documents, positions, columns)


def numbers_of(step: int) -> range:
    """Of a step's microbatches."""
    return range(step * MICROBATCHES, (step + 1) * MICROBATCHES)


def microbatch(number: int) -> Sequences:
    """Rows of 32 or 40 tokens."""
    return packed(rows_of(number), 32 + 8 * (number % 2))


def microbatches(step: int, rank: int = 0, ranks: int = 1) -> list[Sequences]:
    """A data rank's of a step, filled up to the most that one has."""
    every = [microbatch(number) for number in numbers_of(step)]
    mine = every[rank::ranks] or [every[0].nothing()]
    return padded(mine, -(-len(every) // ranks))


def pairs_of(step: int) -> list[Pair]:
    return [one for number in numbers_of(step) for row in rows_of(number) for one in row]


def log_probabilities(weights: dict[str, Tensor], document: Document, model) -> Tensor:
    """Of each trained token, from a plain model that reads this document alone."""
    log = logits(weights, document.tokens[None], model)[0].log_softmax(-1)
    (places,) = document.trained.nonzero(as_tuple=True)
    return log[places - 1, document.tokens[places]]


def score(weights: dict[str, Tensor], document: Document, model) -> Tensor:
    """What a plain model's scalar head gives at the document's end."""
    return hidden(weights, document.tokens[None], model)[0, -1] @ weights["score.weight"][0]
