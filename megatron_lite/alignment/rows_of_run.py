"""The rows of a run: each file prepared once by the first rank, opened by all, and told of in run_dir/rows.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_lite.alignment.packing import Fill
from megatron_lite.alignment.prepare import Prepared, Rendering, prepare
from megatron_lite.alignment.sets import SampleSet
from megatron_lite.alignment.store import open_store
from megatron_lite.config import AlignedConfig, RowsEntry
from megatron_lite.data.names import names_of
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError
from megatron_lite.files import partial_path, publish
from megatron_lite.parallel.words import Words

log = logging.getLogger("megatron_lite")
FILE = "rows.json"  # in a run's directory


@dataclass(frozen=True)
class RowSets:
    """What is trained on and what is validated on; `prepared` says by a set's key what became of its file's rows."""

    train: tuple[SampleSet, ...]
    valid: tuple[SampleSet, ...]
    prepared: Mapping[str, Prepared]


def rendering_of(config: AlignedConfig, tokenizer: Tokenizer) -> Rendering:
    data = config.data
    return Rendering(
        kind="pair" if config.compares else "dialogue",
        tokenizer=tokenizer.path,
        template=tokenizer.chat_template,
        longest=config.train.sequence_length,
        system_prompt=data.system_prompt,
        overlong=data.overlong,
        bad_rows=data.bad_rows,
        criterion=None if config.reward is None else config.reward.criterion,
    )


def prepared_sets(config: AlignedConfig, tokenizer: Tokenizer, words: Words) -> RowSets:
    """Of `data.train` and `data.valid`; all ranks call it. Raises UsageError without training data, DataError where a
    file has bad rows that may not be left out, or no sample that can be trained on.
    """
    data = config.data
    if not data.train:
        raise UsageError("data.train is empty; it takes one file of rows or more, [{path: F.jsonl, weight: 1.0}]")
    found = _on_first(config, rendering_of(config, tokenizer), words)
    for path, prepared in found.items():
        if not prepared.samples:
            raise DataError(f"{path}: none of its rows is left: {told(prepared)}")
    train, valid = (_sets(entries, found) for entries in (data.train, data.valid))
    entries = (*data.train, *data.valid)
    return RowSets(
        train, valid, {one.store.key: found[entry.path] for one, entry in zip((*train, *valid), entries, strict=True)}
    )


def _on_first(config: AlignedConfig, rendering: Rendering, words: Words) -> dict[str, Prepared]:
    """Rank 0 prepares each file, with workers; the others wait for its word."""
    data = config.data
    paths = list(dict.fromkeys(entry.path for entry in (*data.train, *data.valid)))
    mine: list[dict[str, Any]] = []
    for path in paths if words.rank == 0 else ():
        prepared = prepare(Path(path), rendering, data.workers, config.cache_dir)
        log.info("%s: %s", path, told(prepared))
        mine.append({**asdict(prepared), "prefix": str(prepared.prefix)})
    heard = json.loads(words.exchange(json.dumps(mine), "rows")[0])
    return {path: Prepared(**{**one, "prefix": Path(one["prefix"])}) for path, one in zip(paths, heard, strict=True)}


def _sets(entries: Sequence[RowsEntry], found: Mapping[str, Prepared]) -> tuple[SampleSet, ...]:
    names = names_of([(entry.name, Path(entry.path).name.partition(".")[0], entry.path) for entry in entries])
    return tuple(
        SampleSet(name, entry.weight, open_store(found[entry.path].prefix))
        for name, entry in zip(names, entries, strict=True)
    )


def told(prepared: Prepared) -> str:
    """What became of a file's rows, in a line."""
    parts = [f"{prepared.rows:,} rows, {prepared.samples:,} samples of {prepared.tokens:,} tokens"]
    parts.append(f"{prepared.trained_tokens:,} of them trained")
    parts += [f"{count:,} left out ({reason})" for reason, count in prepared.bad.items()]
    counted = {"too long and dropped": prepared.dropped, "too long and cut": prepared.cut}
    counted["of another criterion"] = prepared.others
    return "; ".join([*parts, *(f"{count:,} {what}" for what, count in counted.items() if count)])


def write_rows(config: AlignedConfig, sets: RowSets, fills: Sequence[Fill]) -> None:
    """run_dir/rows.json: for each set, those trained on first, what became of its rows, and how they fill those of the
    run.
    """
    data = config.data
    uses = ["training"] * len(sets.train) + ["validation"] * len(sets.valid)
    lines = []
    for use, entry, one, fill in zip(uses, (*data.train, *data.valid), (*sets.train, *sets.valid), fills, strict=True):
        log.info("%s %s: %s", use, one.name, fill)
        about = {name: value for name, value in asdict(sets.prepared[one.store.key]).items() if name != "prefix"}
        filled = {"packed_rows": fill.rows, "waste": fill.padding}
        lines.append({"name": one.name, "use": use, "path": entry.path, "weight": one.weight, **about, **filled})
    path = Path(config.train.run_dir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path(path).write_text(json.dumps({"sets": lines}, indent=2) + "\n", encoding="utf-8")
    publish(path)
