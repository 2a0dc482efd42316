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
(data/sidecar.py); files that Megatron wrote have none.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from megatron_lite.data import _helpers
from megatron_lite.data.sidecar import Sidecar, TokenizerIdentity
from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES = {np.dtype(token_type): code for code, token_type in TOKEN_TYPES.items()}
LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32
BLOCK = 1 << 20  # elements written at once when the index is put together


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

    tokens [total]; lengths int32 [S], in tokens; pointers int64 [S], in bytes; documents int64 [D + 1], in sequences.
    """

    prefix: str
    tokens: np.ndarray
    lengths: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray
    sidecar: Sidecar | None

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


def open_indexed(prefix: str | Path) -> IndexedDataset:
    """Map PREFIX.bin and PREFIX.idx into memory.

    Raises DataError unless the index is whole, consistent, and describes exactly the bytes of the .bin file, and the
    sidecar, where there is one, was written for these two files.
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
        raise DataError(f"{idx} has {size} bytes; {sequences} sequences and {bounds - 1} documents take {expected}")
    buffer = np.memmap(idx, dtype=np.uint8, mode="r")
    lengths = np.frombuffer(buffer, np.int32, sequences, HEADER.size)
    pointers = np.frombuffer(buffer, np.int64, sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(buffer, np.int64, bounds, HEADER.size + 12 * sequences)
    dtype, bin_bytes = np.dtype(TOKEN_TYPES[code]), bin_.stat().st_size
    try:
        _helpers.check_index(lengths, pointers, documents, dtype.itemsize, bin_bytes)
    except ValueError as error:
        raise DataError(f"{idx}: {error}") from None
    if int(documents[-1]) != sequences:
        raise DataError(f"{idx}: the last document ends at sequence {int(documents[-1])}, there are {sequences}")
    # An empty file cannot be mapped.
    tokens = np.memmap(bin_, dtype=dtype, mode="r") if bin_bytes else np.empty(0, dtype)
    sidecar = Sidecar.load(prefix)
    dataset = IndexedDataset(str(prefix), tokens, lengths, pointers, documents, sidecar)
    if sidecar is not None:
        sidecar.check(prefix, dtype.name, bin_bytes, sequences, bounds - 1)
    return dataset


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


class IndexedDatasetWriter:
    """Writes a data set of any size in constant memory; use it in a `with` statement.

    Tokens go to PREFIX.bin.partial, lengths and documents to files beside it. Leaving the `with` puts the index
    together and renames everything into place, the .idx last: where it stands, the data set is whole. An exception
    inside the `with` removes the partial files and leaves a data set that stood there before untouched.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype, tokenizer: TokenizerIdentity | None = None):
        self.prefix, self.dtype, self.tokenizer = str(prefix), np.dtype(dtype), tokenizer
        self.sequence_count = self.document_count = self.token_count = 0
        self.max_token_id = -1
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self._paths = {name: partial_path(f"{prefix}.{name}") for name in ("bin", "lengths", "documents", "idx")}
        self._files: dict[str, BinaryIO] = {name: path.open("w+b") for name, path in self._paths.items()}
        self._bin_hash, self._idx_hash = xxhash.xxh3_128(), xxhash.xxh3_128()

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for file in self._files.values():
                file.close()
            for path in self._paths.values():
                path.unlink(missing_ok=True)

    def add_document(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Append one document. Raises DataError for a token id that the data set's type cannot hold."""
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        tokens = (
            np.concatenate([np.asarray(s, np.int64) for s in sequences]) if len(sequences) else np.empty(0, np.int64)
        )
        self.add_documents(tokens, lengths, np.array([len(sequences)], np.int64))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray, sequences: np.ndarray) -> None:
        """Append documents: all their tokens, the length of each sequence, the number of sequences of each document."""
        if lengths.sum() != len(tokens) or sequences.sum() != len(lengths):
            raise ValueError(
                f"{len(tokens)} tokens, lengths of {lengths.sum()}; {len(lengths)} lengths, documents of "
                f"{sequences.sum()} sequences"
            )
        if len(lengths) and lengths.max() > LONGEST_SEQUENCE:
            raise DataError(f"a sequence of {lengths.max()} tokens; the index holds at most {LONGEST_SEQUENCE}")
        if len(tokens):
            self._check_tokens(tokens)
        data = np.ascontiguousarray(tokens, self.dtype).tobytes()
        self._files["bin"].write(data)
        self._bin_hash.update(data)
        self._files["lengths"].write(np.ascontiguousarray(lengths, "<i4").tobytes())
        self._files["documents"].write(
            np.ascontiguousarray(self.sequence_count + np.cumsum(sequences), "<i8").tobytes()
        )
        self.token_count += len(tokens)
        self.sequence_count += len(lengths)
        self.document_count += len(sequences)

    def _check_tokens(self, tokens: np.ndarray) -> None:
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest > np.iinfo(self.dtype).max:
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"token id {wrong} does not fit {self.prefix}.bin of type {self.dtype.name}")
        self.max_token_id = max(self.max_token_id, highest)

    def _commit(self) -> None:
        self._write_index()
        for name in ("bin", "idx"):
            self._files[name].flush()
        # Without its .idx the old data set is gone as a whole, so no crash leaves half of each.
        idx_path(self.prefix).unlink(missing_ok=True)
        publish(bin_path(self.prefix))
        self._sidecar().save(self.prefix)
        publish(idx_path(self.prefix))

    def _write_index(self) -> None:
        self._write_idx(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], self.sequence_count, self.document_count + 1))
        for block in self._blocks("lengths"):
            self._write_idx(block)
        pointer = 0
        for block in self._blocks("lengths"):
            ends = pointer + np.cumsum(np.frombuffer(block, "<i4"), dtype=np.int64) * self.dtype.itemsize
            self._write_idx(np.concatenate(([pointer], ends[:-1])).astype("<i8").tobytes())
            pointer = int(ends[-1])
        self._write_idx(np.zeros(1, "<i8").tobytes())
        for block in self._blocks("documents"):
            self._write_idx(block)

    def _blocks(self, name: str) -> Iterator[bytes]:
        self._files[name].seek(0)
        return iter(lambda: self._files[name].read(8 * BLOCK), b"")

    def _write_idx(self, data: bytes) -> None:
        self._files["idx"].write(data)
        self._idx_hash.update(data)

    def _sidecar(self) -> Sidecar:
        return Sidecar(
            tokenizer=self.tokenizer,
            dtype=self.dtype.name,
            documents=self.document_count,
            sequences=self.sequence_count,
            tokens=self.token_count,
            max_token_id=self.max_token_id,
            bin_bytes=self.token_count * self.dtype.itemsize,
            bin_xxh3=self._bin_hash.hexdigest(),
            idx_xxh3=self._idx_hash.hexdigest(),
        )
