"""Writes a store (its files stand in store.py) in memory of a few numbers a sample, whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_lite.alignment.store import Segment, about_path, column_path, trained_path
from megatron_lite.data.indexed import token_dtype
from megatron_lite.data.indexed_writer import IndexedDatasetWriter
from megatron_lite.data.sidecar import TokenizerIdentity
from megatron_lite.files import partial_path, publish


class StoreWriter:
    """Use it in a `with` statement, and end that with `finish`; without, or with an exception, no store is there.

    A store of the same prefix is gone from the beginning: none is ever made of files of two.
    """

    def __init__(self, prefix: Path, tokenizer: TokenizerIdentity):
        """Raises DataError where another process is writing to PREFIX."""
        self.prefix = prefix
        self._tokens = IndexedDatasetWriter(prefix, token_dtype(tokenizer.vocab_size), tokenizer)
        about_path(prefix).unlink(missing_ok=True)
        self._trained: BinaryIO = partial_path(trained_path(prefix)).open("wb")
        self._columns: dict[str, list[float]] = {}
        self.trained_tokens = 0
        self._about: bytes | None = None

    @property
    def samples(self) -> int:
        return self._tokens.written.documents

    @property
    def tokens(self) -> int:
        return self._tokens.written.tokens

    def add(self, segments: Sequence[Segment], numbers: Mapping[str, float]) -> None:
        """A sample, and its number in each column; every sample has the same columns."""
        self._tokens.add_document([segment.tokens for segment in segments])
        for segment in segments:
            self._trained.write(segment.trained.astype(np.uint8).data)
            self.trained_tokens += int(segment.trained.sum())
        for name, number in numbers.items():
            self._columns.setdefault(name, []).append(number)

    def finish(self, key: str, columns: Sequence[str], counts: Mapping[str, Any]) -> None:
        """`columns` are those that the samples have, or would have; `counts` are kept with the store."""
        about = {"key": key, "columns": list(columns), "counts": dict(counts)}
        self._about = json.dumps(about, indent=2).encode() + b"\n"
        for name in columns:
            with partial_path(column_path(self.prefix, name)).open("wb") as file:
                np.save(file, np.array(self._columns.get(name, []), np.float64))

    def __enter__(self) -> "StoreWriter":
        self._tokens.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._trained.close()
        partial_files = [partial_path(trained_path(self.prefix))]
        partial_files += [partial_path(column_path(self.prefix, name)) for name in self._columns]
        try:
            self._tokens.__exit__(kind, *rest)
            if kind is None and self._about is not None:
                self._publish(self._about)
        finally:
            for path in partial_files:
                path.unlink(missing_ok=True)

    def _publish(self, about: bytes) -> None:
        publish(trained_path(self.prefix))
        for name in json.loads(about)["columns"]:
            publish(column_path(self.prefix, name))
        partial_path(about_path(self.prefix)).write_bytes(about)
        publish(about_path(self.prefix))
