"""What a reward model thinks of a file's rows, on any layout: dialogues, or pairs of answers to a prompt.

rows -> store (rank 0, workers) -> a score a segment, read at its last token -> the rows again, in order, with scores
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from megatron_lite.alignment.prepare import Rendering, prepare
from megatron_lite.alignment.reward import Scale
from megatron_lite.alignment.rows import BadRow, Row, parsed, read_rows
from megatron_lite.alignment.segments import check_finite, of_segments
from megatron_lite.alignment.store import Store, open_store
from megatron_lite.checkpoint.agreement import together
from megatron_lite.errors import UsageError
from megatron_lite.files import partial_path, publish
from megatron_lite.mesh import Mesh
from megatron_lite.model.model import Model
from megatron_lite.model.outputs import Values
from megatron_lite.model.sequences import Column, Sequences

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Unweighed:
    """No objective: a scalar head's values are wanted as they are, of a forward pass alone."""

    sums: ClassVar[tuple[str, ...]] = ()
    maxima: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.tokens.new_ones(1, dtype=torch.float64)

    def loss(self, outputs: Values, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return outputs.value.new_zeros(()), {}


@dataclass(frozen=True)
class Scoring:
    """What is asked: rows of a file, where their scores go, and the scale of the model's scores where it has one. Rows
    are prepared in `cache_dir`, which all nodes see, by so many processes (None: one a processor).
    """

    rows: Path
    output: Path
    rendering: Rendering
    scale: Scale | None
    cache_dir: Path
    workers: int | None = None


def score_rows(asked: Scoring, model: Model) -> None:
    """Write each row as a line of JSON with `score` beside its own fields, and where there is a scale with `normalized`
    (mean 0, deviation 1); of a pair with score_chosen, score_rejected and the like. A row that was left out has null.
    All ranks call it; the output appears whole or not at all.

    Raises UsageError for a model without a scalar head, DataError as `prepare` does and for a score that is not finite.
    """
    if model.config.model.head != "scalar":
        raise UsageError(f"model.head = {model.config.model.head}: must be scalar to give scores, as a reward model's")
    store = _prepared(asked, model.mesh)
    scores = of_segments(store, model, Unweighed(), _at_its_end, "scores")
    with together(model.mesh, "score.write"):
        if scores is not None:
            check_finite(scores, store, "score")
            _write(asked.output, scored_lines(asked.rows, store, scores, asked.scale))


def _prepared(asked: Scoring, mesh: Mesh) -> Store:
    """By rank 0; opened by all."""
    prefix = ""
    with together(mesh, "score.prepare"):
        if mesh.rank == 0:
            prefix = str(prepare(asked.rows, asked.rendering, asked.workers, asked.cache_dir).prefix)
    prefix = mesh.words.exchange(prefix, "score.prefix")[0]
    with together(mesh, "score.open"):
        return open_store(Path(prefix))


def kind_of(path: Path) -> Literal["dialogue", "pair"]:
    """Of a file's rows, by its first: "pair" where that has chosen and rejected, else "dialogue"."""
    first = next((_fields(row) for rows in read_rows(path) for _, row in rows), {})
    return "pair" if all(side in first for side in SIDES) else "dialogue"


def scored_lines(path: Path, store: Store, scores: np.ndarray, scale: Scale | None) -> Iterator[str]:
    """Every row of the file in order; `scores` float64 [samples, segments]."""
    sample_of = {int(row): sample for sample, row in enumerate(store.columns["row"])}
    nothing = np.full(scores.shape[1], np.nan)
    for rows in read_rows(path):
        for number, row in rows:
            sample = sample_of.get(number)
            found = _numbers(nothing if sample is None else scores[sample], scale)
            yield json.dumps({**_fields(row), **found}, ensure_ascii=False, default=str)


def _numbers(scores: np.ndarray, scale: Scale | None) -> dict[str, float | None]:
    """By name; null for what is no number."""
    named = {"score": scores}
    if scale is not None:
        named["normalized"] = (scores - scale.mean) / scale.deviation
    ends = [""] if len(scores) == 1 else [f"_{side}" for side in SIDES]
    return {
        f"{name}{end}": float(value) if np.isfinite(value) else None
        for name, values in named.items()
        for end, value in zip(ends, values, strict=True)
    }


def _at_its_end(values: np.ndarray) -> float:
    """Of `Values` of a segment."""
    return float(values[0, -1])


def _fields(row: bytes | Row) -> dict[str, Any]:
    """None of a line that is no object, of which `prepare` has told."""
    try:
        return dict(parsed(row))
    except BadRow:
        return {}


def _write(output: Path, lines: Iterator[str]) -> None:
    with partial_path(output).open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    publish(output)
