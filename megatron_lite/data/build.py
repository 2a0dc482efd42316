"""From the configuration's `data` section to data sets that fit the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_lite.data.blend import BlendedDataset, Phase
from megatron_lite.data.cache import cached
from megatron_lite.data.indexed import IndexedDataset, open_indexed
from megatron_lite.data.samples import GPTDataset, KeyedOrder, Order, Samples, file_order
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError


class WeightedPrefix(Protocol):
    prefix: str
    weight: float


class DataConfig(Protocol):
    """The fields read here; CONTRACT names the rest."""

    train: Sequence[WeightedPrefix]
    valid: Sequence[WeightedPrefix] | None
    split: str | None
    tokenizer: str | None
    seed: int


@dataclass(frozen=True)
class Datasets:
    train: Samples
    valid: Samples | None
    tokenizer: Tokenizer | None
    eod_id: int | None  # the token that ends a document; None where no tokenizer is known


def build_datasets(data: DataConfig, *, sequence_length: int, vocab_size: int, cache_dir: Path | None) -> Datasets:
    """Open the data sets of `data` and check them against the model's vocabulary and the tokenizer.

    Training data goes by a keyed permutation every epoch, validation data in file order. Validation data is
    `data.valid` or, with `data.split`, the split's second part of every training data set.

    Raises UsageError without training data, for a split that is none or that stands beside `data.valid`; DataError for
    a tokenizer larger than the vocabulary, a data set that another tokenizer wrote, a token id outside the vocabulary,
    too few tokens.
    """
    if not data.train:
        raise UsageError("data.train is empty; it takes one data set or more, [{prefix: P, weight: 1.0}]")
    if data.split is not None and data.valid:
        raise UsageError(
            f"data.split is {data.split!r} and data.valid is given too; validation data comes from one of them"
        )
    tokenizer = Tokenizer(data.tokenizer) if data.tokenizer is not None else None
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} pieces, the model's vocab_size is {vocab_size}; "
            f"set model.vocab_size to {tokenizer.vocab_size} or more"
        )
    sources = {}
    for entry in (*data.train, *(data.valid or ())):
        if entry.prefix not in sources:
            sources[entry.prefix] = open_indexed(entry.prefix, cache_dir)
            _check_tokens(sources[entry.prefix], vocab_size, cache_dir)
    eod_id = _check_tokenizers(list(sources.values()), tokenizer)

    shares = None if data.split is None else split_shares(data.split)

    def blend(entries: Sequence[WeightedPrefix], part: int | None, orders: Sequence[Order]) -> Samples:
        datasets = []
        for entry, order in zip(entries, orders, strict=True):
            source = sources[entry.prefix]
            sequences = None if part is None else split_ranges(shares, source.sequence_count)[part]
            datasets.append(GPTDataset(source, sequence_length, order, sequences, cache_dir))
        if len(datasets) == 1:
            return datasets[0]
        return BlendedDataset(datasets, [Phase(0, [entry.weight for entry in entries])])

    keyed = [KeyedOrder(data.seed, stream) for stream in range(len(data.train))]
    train = blend(data.train, None if shares is None else 0, keyed)
    valid = None
    if data.valid:
        valid = blend(data.valid, None, [file_order] * len(data.valid))
    elif shares is not None and shares[1] > 0:
        valid = blend(data.train, 1, [file_order] * len(data.train))
    return Datasets(train, valid, tokenizer, eod_id)


def split_shares(split: str) -> tuple[float, float, float]:
    """Megatron's split: "969,30,1" gives training, validation and test data in this proportion; missing ones get 0.

    Returns shares that sum to 1. Raises UsageError for anything but one to three numbers with a sum above 0.
    """
    number = r"\s*(?:\d+\.?\d*|\.\d+)\s*"
    if not re.fullmatch(f"{number}(?:,{number}){{0,2}}", split):
        raise UsageError(f'data.split is {split!r}; one to three shares are right, e.g. "969,30,1"')
    shares = [float(share) for share in split.split(",")]
    total = sum(shares)
    if total <= 0:
        raise UsageError(f"data.split is {split!r}; its shares sum to {total}")
    train, valid, test = (share / total for share in (*shares, 0.0, 0.0)[:3])
    return train, valid, test


def split_ranges(shares: Sequence[float], sequences: int) -> list[range]:
    """One range of the sequences a share, one after the other in file order, rounded as Megatron rounds them."""
    edges = [round(bound * sequences) for bound in accumulate(shares, initial=0.0)]
    return [range(begin, end) for begin, end in pairwise(edges)]


def _check_tokens(source: IndexedDataset, vocab_size: int, cache_dir: Path | None) -> None:
    if len(source.tokens) == 0:
        raise DataError(f"{source.prefix}.bin holds no tokens")
    # A scan reads the whole .bin file once; what it found is kept.
    found = cached(cache_dir, "token_range", source.fingerprint, {}, lambda: np.array(source.token_range(), np.int64))
    lowest, highest = (int(token) for token in found)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"{source.prefix}.bin holds token id {wrong}; the model's vocab_size is {vocab_size}")


def _check_tokenizers(sources: Sequence[IndexedDataset], tokenizer: Tokenizer | None) -> int | None:
    """Every data set whose tokenizer is known was written by `tokenizer` or, without one, the same; its end token."""
    known = {
        source.prefix: source.sidecar.tokenizer for source in sources if source.sidecar and source.sidecar.tokenizer
    }
    expected, name = (tokenizer.sha256, tokenizer.path) if tokenizer else (None, "")
    for prefix, identity in known.items():
        if expected is None:
            expected, name = identity.sha256, f"that of {prefix}"
        if identity.sha256 != expected:
            raise DataError(
                f"{prefix} was written by the tokenizer with sha256 {identity.sha256[:16]}..., "
                f"not by {name} with {expected[:16]}..."
            )
    if tokenizer is not None:
        return tokenizer.eod_id
    return next((identity.eod_id for identity in known.values()), None)
