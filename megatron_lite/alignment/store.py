"""Rendered rows of one file: tokens in the indexed format, beside them which are trained, and a column a number.

    PREFIX.bin, .idx, .json   tokens (data/indexed.py): a document a sample, of one sequence, or of a pair two
    PREFIX.trained            uint8 a token, 1 where it counts
    PREFIX.NAME.npy           float64 a sample, for each column
    PREFIX.store.json         key, names of the columns, counts; written last: where it stands, all is whole

store_writer.py writes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lite.data.indexed import IndexedDataset, open_indexed
from megatron_lite.errors import DataError


@dataclass(frozen=True)
class Segment:
    """A sequence of a sample. tokens int64 [n]; trained bool [n]: this token, predicted from those before it, counts;
    the first never does.
    """

    tokens: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class Store:
    """Build one with `open_store`.

    trained uint8 [tokens]; columns, each float64 [samples]: "row" (the row's number in the file, from 0) and for pairs
    "margin" (0 where the row has none); key: another one for another content, tokenizer, template or setting.
    """

    indexed: IndexedDataset
    trained: np.ndarray
    columns: Mapping[str, np.ndarray]
    key: str

    def __len__(self) -> int:
        return self.indexed.document_count

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [samples]: tokens of each, all its segments together."""
        ends = np.concatenate(([0], np.cumsum(self.indexed.lengths, dtype=np.int64)))
        return np.diff(ends[self.indexed.documents])

    def sample(self, number: int) -> list[Segment]:
        """One segment of a dialogue; of a pair two, chosen and rejected. Raises IndexError outside [0, len)."""
        tokens = self.indexed.document(number)
        first = int(self.indexed.documents[number])
        begins = self.indexed.pointers[first : first + len(tokens)] // self.indexed.tokens.itemsize
        return [
            Segment(ids, np.asarray(self.trained[begin : begin + len(ids)], bool))
            for ids, begin in zip(tokens, begins, strict=True)
        ]


def open_store(prefix: Path) -> Store:
    """Map what `prepare` wrote. Raises DataError where it is not whole."""
    about = read_about(prefix)
    if about is None:
        raise DataError(f"{about_path(prefix)} is missing: no rows were prepared at {prefix}, or not to the end")
    indexed = open_indexed(prefix)
    size = trained_path(prefix).stat().st_size if trained_path(prefix).is_file() else -1
    if size != len(indexed.tokens):
        raise DataError(f"{trained_path(prefix)} has {max(size, 0)} bytes, there are {len(indexed.tokens)} tokens")
    trained = np.memmap(trained_path(prefix), np.uint8, "r") if size else np.empty(0, np.uint8)
    try:
        columns = {name: np.load(column_path(prefix, name), mmap_mode="r") for name in about["columns"]}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"a column of {prefix} cannot be read ({error}): remove {about_path(prefix)}") from None
    if wrong := [name for name, column in columns.items() if column.shape != (indexed.document_count,)]:
        raise DataError(f"column {wrong[0]} of {prefix} has not a number for each of {indexed.document_count} samples")
    return Store(indexed, trained, columns, about["key"])


def about_path(prefix: Path) -> Path:
    return Path(f"{prefix}.store.json")


def trained_path(prefix: Path) -> Path:
    return Path(f"{prefix}.trained")


def column_path(prefix: Path, name: str) -> Path:
    return Path(f"{prefix}.{name}.npy")


def read_about(prefix: Path) -> dict[str, Any] | None:
    """What PREFIX.store.json says; None where there is none. Raises DataError for a damaged one."""
    if not about_path(prefix).is_file():
        return None
    try:
        about = json.loads(about_path(prefix).read_text(encoding="utf-8"))
        return {"key": about["key"], "columns": list(about["columns"]), "counts": dict(about["counts"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{about_path(prefix)} is damaged ({error}): remove it") from None
