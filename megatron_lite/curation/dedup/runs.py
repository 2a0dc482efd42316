"""Runs and findings: the files between the steps of deduplication, as columns of numbers.

A file is in safetensors' format (an 8-byte length, a JSON header, the columns one after another) and is mapped, not
read: a task takes a range of hashes out of every run, or a shard's rows out of every range's findings, by a binary
search of the sorted column. So nobody decides how many ranges there are when the runs are written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from megatron_lite.errors import DataError, UsageError

FORMAT = 1  # raised when a hash or a column changes its meaning

MOST_ROWS = 1 << 32  # in a run: places are 32-bit numbers

Columns = dict[str, np.ndarray]
DTYPES = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64, "I64": np.int64}


def write_columns(path: str | Path, columns: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
    """`settings` is what the numbers depend on, as JSON values: files made with other ones are not to be mixed."""
    contiguous = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    save_file(contiguous, path, metadata={"settings": _canonical(settings)})


def read_columns(path: str | Path, settings: Mapping[str, Any]) -> Columns:
    """The columns of a file, mapped read-only. Raises DataError for a damaged one, UsageError for other settings."""
    try:
        data = np.memmap(path, np.uint8, "r")
        end = 8 + int(data[:8].view(np.uint64)[0])
        header = json.loads(data[8:end].tobytes())
        written = header.pop("__metadata__")["settings"]
        columns = {
            name: data[end + entry["data_offsets"][0] : end + entry["data_offsets"][1]]
            .view(DTYPES[entry["dtype"]])
            .reshape(entry["shape"])
            for name, entry in header.items()
        }
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: no file of hashes, or cut short ({error})") from None
    if written != _canonical(settings):
        raise UsageError(f"{path}: made with {written}, where {_canonical(settings)} is asked for")
    return columns


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **settings}, sort_keys=True)


@dataclass(frozen=True)
class Range:
    """One of `count` equal parts of the 64-bit numbers."""

    number: int
    count: int

    def rows(self, column: np.ndarray) -> slice:
        """Where a sorted column lies in the range."""
        begin = np.uint64((self.number << 64) // self.count)
        last = np.uint64(((self.number + 1 << 64) // self.count) - 1)
        return slice(int(np.searchsorted(column, begin)), int(np.searchsorted(column, last, side="right")))


@dataclass(frozen=True)
class Gathered:
    """A range of all runs, run after run. Where a row came from: run `shard`, its row `place`."""

    columns: Columns
    shard: np.ndarray  # uint32
    place: np.ndarray  # uint32

    def again(self, first: np.ndarray, old: int) -> np.ndarray:
        """Rows of all but the first `old` runs whose key an earlier row has; `first` is the first row of each's key."""
        return np.flatnonzero((first != np.arange(len(first))) & (self.shard >= old))


def gather(paths: Sequence[str | Path], names: Sequence[str], part: Range, settings: Mapping[str, Any]) -> Gathered:
    """The rows of all runs whose first named column, by which each is sorted, lies in the range.

    Raises DataError and UsageError as `read_columns` does, and DataError for a run of more than 2^32 rows.
    """
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    shards, places = [], []
    for number, path in enumerate(paths):
        run = read_columns(path, settings)
        if len(run[names[0]]) > MOST_ROWS:
            raise DataError(f"{path}: {len(run[names[0]]):,} keys of one shard, more than 2^32: make shards smaller")
        rows = part.rows(run[names[0]])
        for name in names:
            pieces[name].append(np.array(run[name][rows]))
        shards.append(np.full(rows.stop - rows.start, number, np.uint32))
        places.append(np.arange(rows.start, rows.stop).astype(np.uint32))
    columns = {name: np.concatenate(piece) for name, piece in pieces.items()}
    return Gathered(columns, np.concatenate(shards), np.concatenate(places))


def order_by_key(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The one order of 128-bit keys, equal ones side by side."""
    order = np.argsort(high)  # many times as fast as lexsort, and the same unless two halves collide
    ordered_high, ordered_low = high[order], low[order]
    if ((ordered_high[1:] == ordered_high[:-1]) & (ordered_low[1:] != ordered_low[:-1])).any():
        return np.lexsort((low, high))
    return order


def differs_from_previous(*columns: np.ndarray) -> np.ndarray:
    """Where rows of sorted columns begin anew."""
    differs = np.ones(len(columns[0]), bool)
    differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return differs


def write_findings(path: str | Path, columns: Columns, settings: Mapping[str, Any]) -> None:
    """Columns with one named `shard`, sorted by it; rows of a shard stay in order."""
    order = np.argsort(columns["shard"], kind="stable")
    write_columns(path, {name: column[order] for name, column in columns.items()}, settings)


def read_findings(
    paths: Sequence[str | Path], names: Sequence[str], shard: int, settings: Mapping[str, Any]
) -> Columns:
    """What all ranges found about one shard."""
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in paths:
        findings = read_columns(path, settings)
        begin, end = np.searchsorted(findings["shard"], np.array([shard, shard + 1], np.uint32))
        for name in names:
            pieces[name].append(np.array(findings[name][begin:end]))
    return {name: np.concatenate(piece) for name, piece in pieces.items()}


def pack_ids(ids: Sequence[str]) -> Columns:
    """Documents' ids as two columns, for `id_of_row`."""
    encoded = [name.encode() for name in ids]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.uint64)
    return {"ids": np.frombuffer(b"".join(encoded), np.uint8), "id_ends": ends}


def id_of_row(columns: Columns, row: int) -> str:
    begin = int(columns["id_ends"][row - 1]) if row else 0
    return columns["ids"][begin : int(columns["id_ends"][row])].tobytes().decode()


def ids_of_rows(paths: Sequence[str | Path], shards: np.ndarray, rows: np.ndarray, settings: Mapping) -> list[str]:
    """The ids of rows of several runs; each run is opened once."""
    ids = [""] * len(shards)
    for shard in np.unique(shards):
        run = read_columns(paths[shard], settings)
        for i in np.flatnonzero(shards == shard):
            ids[i] = id_of_row(run, int(rows[i]))
    return ids
