"""From the configuration's `data` section to data sets that fit the model."""

import os
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from megatron_lite.config import BlendEntry, DataConfig
from megatron_lite.data.blend import BlendedDataset, Phase
from megatron_lite.data.cache import cached
from megatron_lite.data.fim import FillInTheMiddle
from megatron_lite.data.indexed import IndexedDataset, open_indexed
from megatron_lite.data.megatron_order import MegatronDataset, megatron_samples
from megatron_lite.data.names import names_of
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.samples import GPTDataset, KeyedOrder, Order, Samples, file_order
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError

FILES_OPEN = 2  # of a data set, as long as it is mapped
OTHER_FILES = 512  # that a process may open beside its data: connections, checkpoints


@dataclass(frozen=True)
class ValidationSet:
    """Samples to validate on, once through; the loss over all of them is `weight` of the sets' mean."""

    name: str
    samples: Samples
    weight: float


@dataclass(frozen=True)
class Datasets:
    train: Samples
    valid: tuple[ValidationSet, ...]
    tokenizer: Tokenizer | None
    eod_id: int | None  # the token that ends a document; None where no tokenizer is known


@dataclass(frozen=True)
class Cutting:
    """What samples of every data set have in common."""

    sequence_length: int
    seed: int
    tokenizer: Tokenizer | None
    cache_dir: Path | None


@dataclass(frozen=True)
class Part:
    """The range of a data set's sequences that one entry of the configuration stands for."""

    entry: BlendEntry
    source: IndexedDataset
    sequences: range


def build_datasets(
    data: DataConfig, *, sequence_length: int, vocab_size: int, run_samples: int, cache_dir: Path | None
) -> Datasets:
    """Open the data sets of `data` and check them against the model's vocabulary and the tokenizer.

    Training data goes by a keyed permutation every epoch, validation data in file order; with `order: megatron` both as
    megatron-core reads them in a run of `run_samples`. Validation data is `data.valid` or, with `data.split`, the
    split's second part of every training data set.

    Raises UsageError without training data, for a split that is none or that stands beside `data.valid`, for validation
    sets of one name; DataError for a tokenizer larger than the vocabulary, a data set that another tokenizer wrote, a
    token id outside the vocabulary, too few tokens.
    """
    if not data.train:
        raise UsageError("data.train is empty; it takes one data set or more, [{prefix: P, weight: 1.0}]")
    if data.split is not None and data.valid:
        raise UsageError(
            f"data.split is {data.split!r} and data.valid is given too; validation data comes from one of them"
        )
    tokenizer = open_tokenizer(data.tokenizer) if data.tokenizer is not None else None
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, the model's vocab_size is {vocab_size}; "
            f"set model.vocab_size to {tokenizer.vocab_size} or more"
        )
    sources = _open_sources(data, vocab_size, cache_dir)
    identity = _check_tokenizers(list(sources.values()), tokenizer)
    train, valid = _parts(data, sources)
    cutting = Cutting(sequence_length, data.seed, tokenizer, cache_dir)
    if data.order == "megatron":
        samples, epoch = _megatron_train(train, run_samples, cutting), _megatron_epoch
    else:
        samples, epoch = _stable_train(data, train, cutting), _file_order_epoch
    entries = [part.entry for part in valid]
    names = names_of([(entry.name, Path(entry.prefix).name, entry.prefix) for entry in entries])
    sets = [
        ValidationSet(name, epoch(part, i, cutting), part.entry.weight)
        for i, (name, part) in enumerate(zip(names, valid, strict=True))
    ]
    return Datasets(samples, tuple(sets), tokenizer, identity.eod_id if identity else None)


def _open_sources(data: DataConfig, vocab_size: int, cache_dir: Path | None) -> dict[str, IndexedDataset]:
    """Every data set, by its prefix."""
    prefixes = dict.fromkeys(entry.prefix for entry in (*data.train, *data.valid))
    _allow_open_files(FILES_OPEN * len(prefixes))
    sources = {prefix: open_indexed(prefix, cache_dir) for prefix in prefixes}
    for source in sources.values():
        _check_tokens(source, vocab_size, cache_dir)
    return sources


def _parts(data: DataConfig, sources: dict[str, IndexedDataset]) -> tuple[list[Part], list[Part]]:
    """What is trained on and what is validated on. A split's validation parts are read as plain text."""
    if data.split is None:
        train, valid = (
            [Part(entry, sources[entry.prefix], range(sources[entry.prefix].sequence_count)) for entry in entries]
            for entries in (data.train, data.valid)
        )
        return train, valid
    shares, train, valid = split_shares(data.split), [], []
    for entry in data.train:
        source = sources[entry.prefix]
        train_range, valid_range, _ = split_ranges(shares, source.sequence_count)
        train.append(Part(entry, source, train_range))
        if shares[1] > 0:
            valid.append(Part(entry.model_copy(update={"fim": None}), source, valid_range))
    return train, valid


def _stable_train(data: DataConfig, parts: Sequence[Part], cutting: Cutting) -> Samples:
    datasets = [_samples(part, KeyedOrder(cutting.seed, i), i, cutting) for i, part in enumerate(parts)]
    if len(datasets) == 1:
        return datasets[0]
    phases = [Phase(0, [entry.weight for entry in data.train])]
    for change in data.schedule:
        # The first sample all of whose tokens come at or after the change.
        phases.append(Phase(-(-change.from_tokens // cutting.sequence_length), change.weights))
    return BlendedDataset(datasets, phases)


def _samples(part: Part, order: Order, stream: int, cutting: Cutting) -> GPTDataset:
    """`stream` tells the data sets' random numbers apart."""
    fim, transform = part.entry.fim, None
    if fim is not None:
        if cutting.tokenizer is None:
            raise UsageError(f"{part.entry.prefix} has fim, which cuts text: data.tokenizer must be set")
        transform = FillInTheMiddle(cutting.tokenizer, fim.rate, fim.spm_rate, cutting.seed, stream)
    return GPTDataset(part.source, cutting.sequence_length, order, part.sequences, cutting.cache_dir, transform)


def _megatron_train(parts: Sequence[Part], run_samples: int, cutting: Cutting) -> Samples:
    return megatron_samples(
        [(part.source, part.sequences) for part in parts],
        [part.entry.weight for part in parts],
        run_samples,
        cutting.sequence_length,
        cutting.seed,
        cutting.cache_dir,
    )


def _megatron_epoch(part: Part, stream: int, cutting: Cutting) -> Samples:
    return MegatronDataset(part.source, cutting.sequence_length, cutting.seed, None, part.sequences, cutting.cache_dir)


def _file_order_epoch(part: Part, stream: int, cutting: Cutting) -> Samples:
    return _samples(part, file_order, stream, cutting)


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


def _allow_open_files(more: int) -> None:
    """Let this process open so many more; DataError where the system's limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + more + OTHER_FILES
    if resource.RLIM_INFINITY not in (soft, hard) and needed > hard:
        raise DataError(
            f"{more // FILES_OPEN} data sets take {more} open files, and `ulimit -Hn` is {hard}; raise it, or put data "
            f"sets together with tools/merge_datasets.py"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_tokens(source: IndexedDataset, vocab_size: int, cache_dir: Path | None) -> None:
    if len(source.tokens) == 0:
        raise DataError(f"{source.prefix}.bin holds no tokens")
    # Without a sidecar the whole .bin file is read once; what was found is kept.
    elements = 0 if source.sidecar else len(source.tokens)
    found = cached(
        cache_dir, "token_range", source.fingerprint, {}, elements, lambda: np.array(source.token_range(), np.int64)
    )
    lowest, highest = (int(token) for token in found)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"{source.prefix}.bin holds token id {wrong}; the model's vocab_size is {vocab_size}")


def _check_tokenizers(sources: Sequence[IndexedDataset], tokenizer: Tokenizer | None) -> TokenizerIdentity | None:
    """Every data set whose tokenizer is known was written by `tokenizer` or, without one, the same: returns that."""
    known = {
        source.prefix: source.sidecar.tokenizer for source in sources if source.sidecar and source.sidecar.tokenizer
    }
    expected, name = (tokenizer.identity, tokenizer.path) if tokenizer else (None, "")
    for prefix, identity in known.items():
        if expected is None:
            expected, name = identity, f"that of {prefix}"
        if identity.sha256 != expected.sha256:
            raise DataError(
                f"{prefix} was written by the tokenizer with sha256 {identity.sha256[:16]}..., "
                f"not by {name} with {expected.sha256[:16]}..."
            )
    return expected
