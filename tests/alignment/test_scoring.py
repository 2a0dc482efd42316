"""Scores of a file's rows: those of a plain model at each row's last token, with the rows' own fields, in order."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.aligning import VOCABULARY, write_lines, write_rows
from support.layouts import Blocks, Layout, assemble, build_trainer, owned_blocks, reshaped
from support.pairs import Document, score

from megatron_lite.alignment.prepare import Rendering, prepare
from megatron_lite.alignment.reward import Scale
from megatron_lite.alignment.scoring import Scoring, kind_of, score_rows
from megatron_lite.alignment.store import Store, open_store
from megatron_lite.alignment.template import BUILT_IN
from megatron_lite.config import Config
from megatron_lite.errors import DataError, UsageError
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model

SCALAR = Layout(layers=2, head="scalar")
LAYOUTS = [
    SCALAR,
    replace(SCALAR, tensor=2, pipeline=2, zero_regather="step"),
    replace(SCALAR, data=2, context=2),
]
LONGEST = 256


def config_of(layout: Layout) -> Config:
    return reshaped(layout.config(sequence_length=LONGEST, micro_batch_size=2), vocab_size=VOCABULARY)


def judge(layout: Layout) -> Model:
    config = config_of(layout)
    model = build_trainer(replace(layout, head="logits"), config=reshaped(config, head="logits")).model
    return Model(config, model.resolved, model.mesh, model.schedule, trainable=NOTHING)


def rendering(folder: Path, kind: str, **how: Any) -> Rendering:
    return Rendering(kind, str(folder / "small.model"), BUILT_IN.read_text(), LONGEST, **how)


def asked_of(path: Path, rendering: Rendering, scale: Scale | None = None) -> Scoring:
    return Scoring(path, path.with_suffix(".scored"), rendering, scale, path.parent / "cache", workers=1)


def copied(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(path, tmp_path))


def run(layout: Layout, asked: Scoring) -> Blocks:
    """One rank's part; its weights."""
    model = judge(layout)
    score_rows(asked, model)
    return owned_blocks(model, "compute", model.stage.shards)


def scored(layout: Layout, asked: Scoring, ranks=None) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """(lines of the output, logical weights)."""
    blocks = [run(layout, asked)] if layout.world == 1 else ranks.run(run, layout.world, layout, asked)
    weights = {name: torch.from_numpy(values) for name, values in assemble(blocks).items()}
    return [json.loads(line) for line in asked.output.read_text().splitlines()], weights


def in_a_plain_model(store: Store, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """float64 [samples, segments]."""
    model = config_of(SCALAR).model
    samples = [store.sample(number) for number in range(len(store))]
    return np.array(
        [
            [
                score(weights, Document(torch.from_numpy(one.tokens), torch.from_numpy(one.trained), 0.0), model).item()
                for one in segments
            ]
            for segments in samples
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), 13)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_dialogues_and_pairs_have_the_scores_of_a_plain_model_on_every_layout(ranks, layout, folder, tmp_path):
    for kind, names in (("dialogue", ["score"]), ("pair", ["score_chosen", "score_rejected"])):
        asked = asked_of(copied(folder / f"{kind}s_train.jsonl", tmp_path), rendering(folder, kind))
        lines, weights = scored(layout, asked, ranks)
        store = open_store(prepare(asked.rows, asked.rendering, 1, asked.cache_dir).prefix)
        found = np.array([[line.pop(name) for name in names] for line in lines])
        assert np.abs(found - in_a_plain_model(store, weights)).max() < 1e-12
        assert found.std() > 1e-3
        assert lines == [json.loads(line) for line in asked.rows.read_text().splitlines()]


def test_normalized_scores_of_the_rows_that_gave_the_scale_have_mean_0_and_deviation_1(folder, tmp_path):
    asked = asked_of(copied(folder / "dialogues_train.jsonl", tmp_path), rendering(folder, "dialogue"))
    scores = np.array([line["score"] for line in scored(SCALAR, asked)[0]])
    scale = Scale.of(scores.mean(), (scores**2).mean())
    assert scale.deviation == pytest.approx(scores.std(), rel=1e-9)
    lines, _ = scored(SCALAR, replace(asked, scale=scale))
    assert [line["score"] for line in lines] == scores.tolist()
    normalized = np.array([line["normalized"] for line in lines])
    assert normalized == pytest.approx((scores - scores.mean()) / scores.std(), rel=1e-9)


def test_rows_that_were_left_out_stand_in_their_places_without_a_score(folder, tmp_path):
    good = [json.loads(line) for line in (folder / "pairs_train.jsonl").read_text().splitlines()[:2]]
    long = {"prompt": "a", "chosen": "the model reads " * 200, "rejected": "no"}
    rows = [good[0], {"prompt": "a", "chosen": "b"}, long, {**good[1], "score_chosen": 7.0, "id": "x"}]
    asked = asked_of(
        write_lines(tmp_path / "rows.jsonl", rows), rendering(folder, "pair", bad_rows="skip"), Scale(0.0, 2.0)
    )
    lines, _ = scored(SCALAR, asked)
    assert [line["score_chosen"] is None for line in lines] == [False, True, True, False]
    assert [line["normalized_rejected"] is None for line in lines] == [False, True, True, False]
    assert lines[3]["id"] == "x"
    assert lines[3]["score_chosen"] not in (7.0, lines[0]["score_chosen"])
    assert lines[3]["normalized_chosen"] == lines[3]["score_chosen"] / 2
    assert lines[1].items() >= rows[1].items()


def test_a_bad_row_ends_it_by_name_and_leaves_no_output(folder, tmp_path):
    asked = asked_of(write_lines(tmp_path / "rows.jsonl", [{"messages": "hello"}]), rendering(folder, "dialogue"))
    with pytest.raises(DataError, match=r"rows.jsonl line 1: messages is 'hello': must be a list of objects"):
        run(SCALAR, asked)
    assert not asked.output.exists()


def test_a_score_that_is_not_finite_ends_it_by_name_and_leaves_no_output(folder, tmp_path):
    asked = asked_of(copied(folder / "dialogues_train.jsonl", tmp_path), rendering(folder, "dialogue"))
    model = judge(SCALAR)
    model.stage.shards[-1].values.fill_(float("inf"))
    with pytest.raises(DataError, match=r"row 0: the score is \[nan\]: must be finite"):
        score_rows(asked, model)
    assert not asked.output.exists()


def test_a_model_that_ends_with_a_vocabulary_has_no_scores(folder, tmp_path):
    model = build_trainer(Layout(layers=2)).model
    asked = asked_of(folder / "dialogues_train.jsonl", rendering(folder, "dialogue"))
    with pytest.raises(UsageError, match=r"model.head = logits: must be scalar to give scores"):
        score_rows(asked, model)


@pytest.mark.parametrize("name", ["dialogues", "pairs"])
def test_a_files_kind_is_that_of_its_first_row(folder, tmp_path, name):
    assert kind_of(folder / f"{name}_train.jsonl") == name.removesuffix("s")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert kind_of(empty) == "dialogue"


def test_a_file_without_rows_has_an_output_without_lines(folder, tmp_path):
    asked = asked_of(tmp_path / "empty.jsonl", rendering(folder, "dialogue"))
    asked.rows.write_text("")
    assert scored(SCALAR, asked)[0] == []
