"""Writes an indexed data set (its format stands in indexed.py): in constant memory, whole or not at all, resumable."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from megatron_lite.data.indexed import CODES, HEADER, MAGIC, VERSION, IndexedDataset, bin_path, idx_path
from megatron_lite.data.sidecar import Sidecar, TokenizerIdentity
from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish

LONGEST_SEQUENCE = 2**31 - 1  # lengths are int32
BLOCK = 1 << 20  # elements written at once when the index is put together


@dataclass(frozen=True)
class Written:
    """What a writer has written so far; with `save` on the disk, from where another one can go on."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    max_token_id: int = -1
    text_bytes: int | None = 0  # None: nobody counted


class IndexedDatasetWriter:
    """Writes a data set of any size in constant memory; use it in a `with` statement.

    Tokens go to PREFIX.bin.partial, lengths and documents to files beside it. Leaving the `with` puts the index
    together and renames everything into place, the .idx last: where it stands, the data set is whole. An exception
    inside the `with` leaves a data set that stood there before untouched, and removes the partial files, unless `save`
    was called: then they stay for a writer that is given what `save` returned, in this process or another.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype | str,
        tokenizer: TokenizerIdentity | None = None,
        resume: Written | None = None,
    ):
        """Raises DataError where another process is writing to PREFIX, or what `resume` counts is not there."""
        self.prefix, self.dtype, self.tokenizer = str(prefix), np.dtype(dtype), tokenizer
        self.written = resume or Written()
        self._saved = resume is not None
        self._paths = partial_paths(prefix)
        self._bin_hash, self._idx_hash = xxhash.xxh3_128(), xxhash.xxh3_128()
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        # The lock is on a file that is never renamed.
        self._files: dict[str, BinaryIO] = {"lengths": _open_alone(self._paths["lengths"])}
        if resume:
            self._take_back_bin()
        for name in ("bin", "documents", "idx"):
            self._files[name] = _open(self._paths[name])
        for name, size in self._sizes(self.written).items():
            self._cut(name, size)

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        committed = False
        try:
            if kind is None:
                self._commit()
                committed = True
        finally:
            if committed or not self._saved:
                for path in self._paths.values():
                    path.unlink(missing_ok=True)
            for file in self._files.values():
                file.close()

    def add_document(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Append one document. Raises DataError for a token id that the data set's type cannot hold."""
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        tokens = (
            np.concatenate([np.asarray(s, np.int64) for s in sequences]) if len(sequences) else np.empty(0, np.int64)
        )
        self.add_documents(tokens, lengths, np.array([len(sequences)], np.int64))

    def add_documents(
        self, tokens: np.ndarray, lengths: np.ndarray, sequences: np.ndarray, text_bytes: int | None = None
    ) -> None:
        """Append documents: all their tokens, the length of each sequence, the number of sequences of each document.

        `text_bytes` of text became these tokens; None where nobody counted.
        """
        if lengths.sum() != len(tokens) or sequences.sum() != len(lengths):
            raise ValueError(
                f"{len(tokens)} tokens, lengths of {lengths.sum()}; {len(lengths)} lengths, documents of "
                f"{sequences.sum()} sequences"
            )
        if len(lengths) and lengths.max() > LONGEST_SEQUENCE:
            raise DataError(f"a sequence of {lengths.max()} tokens; the index holds at most {LONGEST_SEQUENCE}")
        highest = self._highest(tokens)
        self._write_bin(np.ascontiguousarray(tokens, self.dtype))
        self._write_columns(lengths, np.cumsum(sequences))
        self._count(Written(len(sequences), len(lengths), len(tokens), highest, text_bytes))

    def add_dataset(self, dataset: IndexedDataset) -> None:
        """Append all documents of a data set, byte for byte, a block of each file at a time.

        Raises DataError for one of another token type, one whose sequences do not lie one behind the other, and one
        whose bytes are not those that its sidecar's checksum was made of.
        """
        if dataset.tokens.dtype != self.dtype:
            raise DataError(f"{dataset.prefix} has tokens of {dataset.tokens.dtype}, {self.prefix} of {self.dtype}")
        check_contiguous(dataset)
        checksum = xxhash.xxh3_128()
        for block in blocks(dataset.tokens):
            self._write_bin(block)
            checksum.update(block.data)
        sidecar = dataset.sidecar
        if sidecar and sidecar.bin_xxh3 != checksum.hexdigest():
            raise DataError(f"{bin_path(dataset.prefix)} is damaged: its checksum is not the one in its sidecar")
        for block in blocks(dataset.lengths):
            self._write_columns(block, np.empty(0, np.int64))
        for block in blocks(dataset.documents[1:]):
            self._write_columns(np.empty(0, np.int32), block)
        highest = dataset.token_range()[1] if len(dataset.tokens) else -1
        text_bytes = sidecar.text_bytes if sidecar else None
        counts = (dataset.document_count, dataset.sequence_count, len(dataset.tokens))
        self._count(Written(*counts, highest, text_bytes))

    def save(self) -> Written:
        """Bring all that was added to the disk, to stay there whatever happens to this process."""
        for name in ("bin", "lengths", "documents"):
            self._files[name].flush()
            os.fsync(self._files[name].fileno())
        self._saved = True
        return self.written

    def _write_bin(self, tokens: np.ndarray) -> None:
        self._files["bin"].write(tokens.data)
        self._bin_hash.update(tokens.data)

    def _write_columns(self, lengths: np.ndarray, documents: np.ndarray) -> None:
        """`documents`: the ends of documents, in sequences from those that were counted so far."""
        self._files["lengths"].write(np.ascontiguousarray(lengths, "<i4").data)
        self._files["documents"].write(np.ascontiguousarray(self.written.sequences + documents, "<i8").data)

    def _count(self, more: Written) -> None:
        before = self.written
        self.written = Written(
            before.documents + more.documents,
            before.sequences + more.sequences,
            before.tokens + more.tokens,
            max(before.max_token_id, more.max_token_id),
            None if before.text_bytes is None or more.text_bytes is None else before.text_bytes + more.text_bytes,
        )

    def _highest(self, tokens: np.ndarray) -> int:
        if not len(tokens):
            return -1
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest > np.iinfo(self.dtype).max:
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"token id {wrong} does not fit {self.prefix}.bin of type {self.dtype.name}")
        return highest

    def _sizes(self, written: Written) -> dict[str, int]:
        sizes = {"bin": written.tokens * self.dtype.itemsize, "lengths": 4 * written.sequences}
        return sizes | {"documents": 8 * written.documents, "idx": 0}

    def _take_back_bin(self) -> None:
        """Undo the first renaming of a commit that was cut off: without its .idx the .bin file is no data set yet."""
        bin_ = bin_path(self.prefix)
        if not self._paths["bin"].exists() and bin_.exists() and not idx_path(self.prefix).exists():
            bin_.rename(self._paths["bin"])

    def _cut(self, name: str, size: int) -> None:
        """Take back what was written after `save`, and hash what stays of the tokens."""
        file = self._files[name]
        if (found := os.fstat(file.fileno()).st_size) < size:
            raise DataError(f"{self._paths[name]} has {found} bytes, {size} were saved; the run has to start anew")
        file.truncate(size)
        if name == "bin":
            for block in iter(lambda: file.read(8 * BLOCK), b""):
                self._bin_hash.update(block)
        file.seek(size)

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
        written = self.written
        self._write_idx(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], written.sequences, written.documents + 1))
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
        written = self.written
        return Sidecar(
            tokenizer=self.tokenizer,
            dtype=self.dtype.name,
            documents=written.documents,
            sequences=written.sequences,
            tokens=written.tokens,
            max_token_id=written.max_token_id,
            bin_bytes=written.tokens * self.dtype.itemsize,
            bin_xxh3=self._bin_hash.hexdigest(),
            idx_xxh3=self._idx_hash.hexdigest(),
            text_bytes=written.text_bytes,
        )


def check_contiguous(dataset: IndexedDataset) -> None:
    """Raises DataError unless each sequence begins where the one before it ends."""
    pointer = 0
    for begin in range(0, dataset.sequence_count, BLOCK):
        lengths = dataset.lengths[begin : begin + BLOCK].astype(np.int64) * dataset.tokens.itemsize
        expected = pointer + np.cumsum(lengths) - lengths
        wrong = np.flatnonzero(dataset.pointers[begin : begin + BLOCK] != expected)
        if len(wrong):
            index = begin + int(wrong[0])
            raise DataError(
                f"{dataset.prefix}: sequence {index} begins at byte {dataset.pointers[index]}, "
                f"the one before it ends at {expected[wrong[0]]}"
            )
        pointer += int(lengths.sum())


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in order, BLOCK elements at a time."""
    return (array[begin : begin + BLOCK] for begin in range(0, len(array), BLOCK))


def partial_paths(prefix: str | Path) -> dict[str, Path]:
    """The files that are there while PREFIX is being written."""
    return {name: partial_path(f"{prefix}.{name}") for name in ("bin", "lengths", "documents", "idx")}


def _open(path: Path) -> BinaryIO:
    """Open for reading and writing, made if it is not there."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _open_alone(path: Path) -> BinaryIO:
    """Raises DataError where another process has the file."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except BlockingIOError:
        held = False
    if not held:
        file.close()
        raise DataError(f"{path} is being written by another process")
    return file
