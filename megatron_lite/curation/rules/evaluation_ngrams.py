"""The table of n-grams of evaluation sets that decontamination looks up, and how it is made."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lite.curation._lists import SharedNGrams, SharedPassages, ngram_starts, ngrams, start_filter
from megatron_lite.curation.dedup.runs import read_columns, write_columns
from megatron_lite.errors import DataError, UsageError
from megatron_lite.files import partial_path, publish

WORDS, LEAST_WORDS = 13, 8
MOST_ITEMS = 10
SETTINGS = {"table": "evaluation n-grams"}


@dataclass(frozen=True)
class Built:
    """What became of one set's items."""

    items: int
    too_short: int  # of fewer than LEAST_WORDS words: they are not looked for
    ngrams: int
    common: int  # n-grams in more than `most_items` items: left out


class Table:
    """Opened; `find` gives a text's passages, `name_of` an item's set and its number in it, from 0."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.description = json.loads(columns["description"].tobytes())
        self._set_of, self._number_of = columns["set"], columns["number"]
        self._ngrams = SharedNGrams(
            columns["hashes"], columns["items"], columns["filter"], LEAST_WORDS, self.description["lengths"]
        )

    def find(self, text: str) -> SharedPassages:
        return self._ngrams.find(text)

    def name_of(self, item: int) -> tuple[str, int]:
        return self.description["sets"][self._set_of[item]], int(self._number_of[item])


def open_table(path: str | Path) -> Table:
    """Raises DataError or UsageError for a file that is none."""
    columns = read_columns(path, SETTINGS)
    if missing := {"description", "set", "number", "hashes", "items", "filter"} - set(columns):
        raise DataError(f"{path}: no table of n-grams: {', '.join(sorted(missing))} is missing")
    return Table(columns)


def build_table(
    sets: Mapping[str, Sequence[str | Path]], path: str | Path, words: int = WORDS, most_items: int = MOST_ITEMS
) -> dict[str, Built]:
    """Write the table of evaluation sets, each a name and its files; returns counts by set.

    A file is JSONL (.jsonl, .json: an item is a record, all strings in it together) or plain text (an item a line).
    An item of 8 words to `words` counts as a whole. N-grams that stand in more than `most_items` items of a set are
    the form of its questions, not their content.
    """
    if not LEAST_WORDS <= words <= 50:
        raise UsageError(f"n-grams of {words} words: {LEAST_WORDS} to 50 are possible")
    builder = _Builder(words, most_items)
    built = {name: builder.add(name, [Path(file) for file in files]) for name, files in sets.items()}
    write_columns(partial_path(path), builder.columns(), SETTINGS)
    publish(path)
    return built


class _Builder:
    def __init__(self, words: int, most_items: int):
        self._words, self._most_items = words, most_items
        self._sets: list[str] = []
        self._hashes: list[np.ndarray] = []
        self._items: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._set_of: list[int] = []
        self._number_of: list[int] = []
        self._lengths: set[int] = set()

    def add(self, name: str, files: Sequence[Path]) -> Built:
        first = len(self._set_of)
        hashes, items, starts, too_short, number = [], [], [], 0, -1
        for number, text in enumerate(text for file in files for text in read_items(file)):
            found, count = ngrams(text, self._words)
            if count < LEAST_WORDS:
                too_short += 1
                continue
            self._lengths.add(min(count, self._words))
            hashes.append(found)
            items.append(np.full(len(found), len(self._set_of), np.uint32))
            starts.append(ngram_starts(text, LEAST_WORDS)[: len(found)])
            self._set_of.append(len(self._sets))
            self._number_of.append(number)
        self._sets.append(name)
        if len(self._set_of) == first:
            return Built(number + 1, too_short, 0, 0)
        kept = self._keep_rare(np.concatenate(hashes), np.concatenate(items), np.concatenate(starts))
        return Built(number + 1, too_short, *kept)

    def _keep_rare(self, hashes: np.ndarray, items: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
        """Keep each n-gram once, with the first item that has it, unless too many have it."""
        order = np.lexsort((items, hashes))
        hashes, items, starts = hashes[order], items[order], starts[order]
        new_pair = np.ones(len(hashes), bool)
        new_pair[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
        hashes, items, starts = hashes[new_pair], items[new_pair], starts[new_pair]
        unique, first, in_items = np.unique(hashes, return_index=True, return_counts=True)
        rare = in_items <= self._most_items
        self._hashes.append(unique[rare])
        self._items.append(items[first[rare]])
        self._starts.append(starts[first[rare]])
        return int(rare.sum()), int((~rare).sum())

    def columns(self) -> dict[str, np.ndarray]:
        hashes, first = np.unique(_joined(self._hashes, np.uint64), return_index=True)
        description = {"sets": self._sets, "lengths": sorted(self._lengths)}
        return {
            "description": np.frombuffer(json.dumps(description).encode(), np.uint8),
            "set": np.array(self._set_of, np.uint32),
            "number": np.array(self._number_of, np.uint32),
            "hashes": hashes,
            "items": _joined(self._items, np.uint32)[first],
            "filter": start_filter(_joined(self._starts, np.uint64)),
        }


def read_items(path: Path) -> Iterator[str]:
    """The items of an evaluation file, empty lines left out. Raises DataError naming the line that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield "\n".join(strings(json.loads(line))) if path.suffix in (".jsonl", ".json") else line
                except json.JSONDecodeError as error:
                    raise DataError(f"{path} line {number}: no JSON: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None


def strings(value: Any) -> Iterator[str]:
    """All strings of a JSON value, in order, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.array([], dtype)
