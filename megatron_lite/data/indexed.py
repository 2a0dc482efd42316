"""Megatron's indexed data set, byte for byte: all tokens in PREFIX.bin, where they lie in PREFIX.idx.

PREFIX.idx, little endian, with S sequences and D documents:

    offset        size     field
    0             9        magic
    9             8        version, 1
    17            1        code of the token type (TOKEN_TYPES)
    18            8        S
    26            8        D + 1
    34            4 S      int32 length of each sequence, in tokens
    34 + 4 S      8 S      int64 byte offset of each sequence in the .bin file
    34 + 12 S     8 D + 8  int64 first sequence of each document, then S

A document is any number of sequences, none included. Beside the two files this project writes PREFIX.json, the sidecar
(data/sidecar.py); files that Megatron wrote have none. indexed_writer.py writes all three.
"""

import hashlib
import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_lite.data import _helpers
from megatron_lite.data.cache import cached
from megatron_lite.data.sidecar import Sidecar
from megatron_lite.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES = {np.dtype(token_type): code for code, token_type in TOKEN_TYPES.items()}
CHECKED_AT_ONCE = 1 << 24  # sequences, or documents, whose part of the index is in memory while it is checked


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The token type that Megatron takes for a vocabulary: uint16 below 65,500 pieces, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


@dataclass(frozen=True)
class IndexedDataset:
    """A memory-mapped data set. Build one with `open_indexed`.

    tokens [total]; lengths int32 [S], in tokens; pointers int64 [S], in bytes; documents int64 [D + 1], in sequences;
    fingerprint: another one for other files, or for these files changed.
    """

    prefix: str
    tokens: np.ndarray
    lengths: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray
    sidecar: Sidecar | None
    fingerprint: str

    @property
    def sequence_count(self) -> int:
        return len(self.lengths)

    @property
    def document_count(self) -> int:
        return len(self.documents) - 1

    def sequence(self, index: int) -> np.ndarray:
        """Tokens of one sequence, int64 [length]. Raises IndexError outside [0, sequence_count)."""
        return _helpers.gather_tokens(
            self.tokens, self.lengths, self.pointers, index, index + 1, 0, int(self.lengths[index])
        )

    def document(self, index: int) -> list[np.ndarray]:
        """The sequences of one document. Raises IndexError outside [0, document_count)."""
        if not 0 <= index < self.document_count:
            raise IndexError(f"document {index} of {self.document_count} in {self.prefix}")
        return [self.sequence(i) for i in range(int(self.documents[index]), int(self.documents[index + 1]))]

    def token_range(self) -> tuple[int, int]:
        """(lowest, highest) token id, read off the sidecar or, without one, found by a scan of the .bin file."""
        if self.sidecar is not None:
            return 0, self.sidecar.max_token_id
        return _helpers.token_range(self.tokens)


def open_indexed(prefix: str | Path, cache_dir: Path | None = None) -> IndexedDataset:
    """Map PREFIX.bin and PREFIX.idx into memory.

    Raises DataError unless the index is whole, consistent, and describes exactly the bytes of the .bin file, and the
    sidecar, where there is one, was written for these two files. What was found good is noted in `cache_dir` (None:
    nowhere) and not looked through again while the files stay as they are.
    """
    idx, bin_ = idx_path(prefix), bin_path(prefix)
    for path in (idx, bin_):
        if not path.is_file():
            raise DataError(
                f"{path} is missing; a data set is PREFIX.bin and PREFIX.idx, written by preprocess_data.py"
            )
    code, sequences, bounds = _read_header(idx)
    if code not in TOKEN_TYPES:
        known = ", ".join(f"{known} {np.dtype(kind).name}" for known, kind in TOKEN_TYPES.items())
        raise DataError(f"{idx}: token type {code} is none of {known}")
    expected = HEADER.size + 12 * sequences + 8 * bounds
    if (size := idx.stat().st_size) != expected:
        why = "; the modes of a multimodal data set are not read" if size == expected + sequences else ""
        raise DataError(
            f"{idx} has {size} bytes; {sequences} sequences and {bounds - 1} documents take {expected}{why}"
        )
    with idx.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    lengths = np.frombuffer(buffer, np.int32, sequences, HEADER.size)
    pointers = np.frombuffer(buffer, np.int64, sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(buffer, np.int64, bounds, HEADER.size + 12 * sequences)
    dtype, bin_bytes = np.dtype(TOKEN_TYPES[code]), bin_.stat().st_size
    # An empty file cannot be mapped.
    tokens = np.memmap(bin_, dtype=dtype, mode="r") if bin_bytes else np.empty(0, dtype)
    sidecar = Sidecar.load(prefix)
    fingerprint = _fingerprint(prefix, sidecar)
    dataset = IndexedDataset(str(prefix), tokens, lengths, pointers, documents, sidecar, fingerprint)
    if sidecar is not None:
        sidecar.check(prefix, dtype.name, bin_bytes, sequences, bounds - 1)
    elements = sequences + bounds
    cached(
        cache_dir,
        "checked",
        fingerprint,
        {},
        elements,
        lambda: _check_index(dataset, buffer, dtype.itemsize, bin_bytes),
    )
    return dataset


def _check_index(dataset: IndexedDataset, buffer: mmap.mmap, token_bytes: int, bin_bytes: int) -> np.ndarray:
    """One zero. Raises DataError unless the index describes a .bin file of just so many bytes."""
    idx, sequences = idx_path(dataset.prefix), dataset.sequence_count
    try:
        end = last = 0
        for first in range(0, len(dataset.documents), CHECKED_AT_ONCE):
            documents = dataset.documents[first : first + CHECKED_AT_ONCE]
            last = _helpers.check_documents(documents, first, last, sequences)
            buffer.madvise(mmap.MADV_DONTNEED)  # pages of the file, gone from this process's memory alone
        for first in range(0, sequences, CHECKED_AT_ONCE):
            block = slice(first, first + CHECKED_AT_ONCE)
            lengths, pointers = dataset.lengths[block], dataset.pointers[block]
            end = max(end, _helpers.check_sequences(lengths, pointers, first, token_bytes, bin_bytes))
            buffer.madvise(mmap.MADV_DONTNEED)
    except ValueError as error:
        raise DataError(f"{idx}: {error}") from None
    if end != bin_bytes:
        raise DataError(f"{idx}: the index describes {end} bytes, the .bin file has {bin_bytes}")
    if last != sequences:
        raise DataError(f"{idx}: the last document ends at sequence {last}, there are {sequences}")
    return np.zeros(1, np.int8)


def _fingerprint(prefix: str | Path, sidecar: Sidecar | None) -> str:
    """A digest of where the two files lie, their sizes, times of change and, where they are known, checksums."""
    statuses = [path.stat() for path in (bin_path(prefix), idx_path(prefix))]
    files = [(status.st_size, status.st_mtime_ns) for status in statuses]
    checksums = [sidecar.bin_xxh3, sidecar.idx_xxh3] if sidecar else []
    key = json.dumps([str(Path(prefix).resolve()), files, checksums])
    return hashlib.sha256(key.encode()).hexdigest()


def _read_header(path: Path) -> tuple[int, int, int]:
    """Token type code, number of sequences, number of documents + 1."""
    with path.open("rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise DataError(f"{path} is no index of Megatron's: it begins with {raw[:9]!r}, not {MAGIC!r}")
    _, version, code, sequences, bounds = HEADER.unpack(raw)
    if version != VERSION:
        raise DataError(f"{path} has version {version}; {VERSION} is read")
    if bounds < 1:
        raise DataError(f"{path}: the list of documents is empty; even without documents it holds one number")
    return code, sequences, bounds
