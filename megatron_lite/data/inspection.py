"""What is in a data set: statistics, samples of its text, and whether it is what its sidecar says."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_lite.data import _helpers
from megatron_lite.data.indexed import IndexedDataset, bin_path, idx_path
from megatron_lite.data.indexed_writer import BLOCK, check_contiguous
from megatron_lite.data.sidecar import sidecar_path
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError

HASHED_BYTES = 1 << 23  # read at once


@dataclass(frozen=True)
class Statistics:
    """Counts of a data set.

    histogram[k]: how many documents have fewer than 2^k tokens and no fewer than 2^(k-1); k = 0 is none at all.
    """

    documents: int
    empty_documents: int
    sequences: int
    tokens: int
    dtype: str
    bin_bytes: int
    shortest: int  # document, in tokens
    mean: float
    longest: int
    histogram: list[int]
    bytes_per_token: float | None  # None where nobody counted the text


def statistics(dataset: IndexedDataset) -> Statistics:
    """One pass over the index, a block at a time; tokens are not read."""
    histogram = np.zeros(64, np.int64)
    shortest, longest, empty = 2**63 - 1, 0, 0
    for lengths in document_lengths(dataset):
        bits = np.zeros(len(lengths), np.int64)
        positive = lengths > 0
        bits[positive] = np.frexp(lengths[positive].astype(np.float64))[1]  # 2^(bits-1) <= length < 2^bits
        histogram += np.bincount(bits, minlength=64)
        shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
        empty += int((~positive).sum())
    documents, tokens = dataset.document_count, len(dataset.tokens)
    text_bytes = dataset.sidecar.text_bytes if dataset.sidecar else None
    return Statistics(
        documents=documents,
        empty_documents=empty,
        sequences=dataset.sequence_count,
        tokens=tokens,
        dtype=dataset.tokens.dtype.name,
        bin_bytes=dataset.tokens.nbytes,
        shortest=shortest if documents else 0,
        mean=tokens / documents if documents else 0.0,
        longest=longest,
        histogram=histogram[: int(np.flatnonzero(histogram)[-1]) + 1].tolist() if documents else [],
        bytes_per_token=text_bytes / tokens if text_bytes is not None and tokens else None,
    )


def document_lengths(dataset: IndexedDataset) -> Iterator[np.ndarray]:
    """Tokens of each document, int64, a block of documents at a time."""
    for begin in range(0, dataset.document_count, BLOCK):
        bounds = dataset.documents[begin : begin + BLOCK + 1]
        ends = np.cumsum(dataset.lengths[bounds[0] : bounds[-1]], dtype=np.int64)
        yield np.diff(np.concatenate(([0], ends))[bounds - bounds[0]])


def choose_documents(dataset: IndexedDataset, count: int, seed: int) -> list[int]:
    """Numbers of documents, in order: the same for the same number of documents, count and seed."""
    return sorted(random.Random(seed).sample(range(dataset.document_count), min(count, dataset.document_count)))


def read_document(dataset: IndexedDataset, tokenizer: Tokenizer, index: int) -> dict[str, Any]:
    """A document's number, how many tokens its sequences have, and its text."""
    sequences = dataset.document(index)
    text = "".join(tokenizer.decode(sequence) for sequence in sequences)
    return {"document": index, "sequences": [len(sequence) for sequence in sequences], "text": text}


def faults(dataset: IndexedDataset) -> Iterator[str]:
    """What is wrong with a data set that opens, a line each; nothing where all is right. Reads all of it."""
    sidecar = dataset.sidecar
    try:
        check_contiguous(dataset)
    except DataError as error:
        yield str(error)
    lowest, highest = _helpers.token_range(dataset.tokens) if len(dataset.tokens) else (0, -1)
    if lowest < 0:
        yield f"{bin_path(dataset.prefix)} holds token id {lowest}"
    if sidecar is None:
        yield f"{sidecar_path(dataset.prefix)} is missing: there is nothing to check the bytes against"
        return
    if highest != sidecar.max_token_id:
        yield f"{bin_path(dataset.prefix)}: the highest token id is {highest}, the sidecar says {sidecar.max_token_id}"
    if sidecar.tokenizer and highest >= sidecar.tokenizer.vocab_size:
        yield f"{bin_path(dataset.prefix)} holds token id {highest}, the tokenizer has {sidecar.tokenizer.vocab_size}"
    if sidecar.tokens != len(dataset.tokens):
        yield f"the .bin file has {len(dataset.tokens)} tokens, the sidecar says {sidecar.tokens}"
    for path, expected in (
        (bin_path(dataset.prefix), sidecar.bin_xxh3),
        (idx_path(dataset.prefix), sidecar.idx_xxh3),
    ):
        if (found := checksum(path)) != expected:
            yield f"{path} has checksum {found}, the sidecar says {expected}"


def checksum(path: Path) -> str:
    """xxh3 of a file, 128 bits, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
