"""A reference's log-probabilities: those of a plain model that reads each answer alone, kept by what they depend on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.layouts import Blocks, Layout, assemble, build_trainer, distance, owned_blocks
from support.pairs import log_probabilities, pair
from support.rows import store_of_pairs

from megatron_lite.alignment.reference import key_of, reference_of
from megatron_lite.alignment.store import open_store
from megatron_lite.config import LoraConfig, ModelConfig
from megatron_lite.errors import DataError
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model

PAIRS = [pair(number) for number in range(21)]  # the last batch has a rest
LAYOUTS = [
    Layout(layers=2),
    Layout(layers=2, tensor=2, pipeline=2, zero_regather="step"),
    Layout(layers=2, tensor=2, context=2, loss_chunk=5),
    Layout(pipeline=2, data=2, schedule="zb_v", virtual_stages=2, tied=True),
]


@dataclass
class Found:
    """Of one rank."""

    weights: Blocks
    reference: np.ndarray
    again: np.ndarray


def asked(layout: Layout) -> Model:
    """Nothing of it is trained. Rows of 24 tokens hold one pair or two; a batch has 12 of them, a microbatch two."""
    config = layout.config(sequence_length=24, micro_batch_size=2)
    model = build_trainer(layout, config=config).model
    return Model(config, model.resolved, model.mesh, model.schedule, trainable=NOTHING)


def run(layout: Layout, prefix: Path, cache: Path) -> Found:
    model, store = asked(layout), open_store(prefix)
    weights = owned_blocks(model, "compute", model.stage.shards)
    reference = np.array(reference_of(store, model, "seed 7", cache))
    return Found(weights, reference, np.array(reference_of(store, model, "seed 7", cache)))


def in_a_plain_model(weights: dict[str, np.ndarray], model: ModelConfig) -> np.ndarray:
    """Float64 [samples, 2] of PAIRS."""
    given = {name: torch.from_numpy(values) for name, values in weights.items()}
    halves = [[one.chosen, one.rejected] for one in PAIRS]
    return np.array([[log_probabilities(given, half, model).sum().item() for half in both] for both in halves])


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    return Path(store_of_pairs(tmp_path_factory.mktemp("rows") / "pairs", PAIRS).indexed.prefix)


@pytest.fixture(scope="module")
def model() -> Model:
    return asked(LAYOUTS[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_answer_has_the_sum_of_its_tokens_log_probabilities_in_a_plain_model(ranks, layout, prefix, tmp_path):
    """The vocabulary of 61 is padded to 64 or more over tensor ranks, of which the plain model knows nothing."""
    arguments = layout, prefix, tmp_path
    found = [run(*arguments)] if layout.world == 1 else ranks.run(run, layout.world, *arguments)
    weights = assemble([rank.weights for rank in found])
    expected = in_a_plain_model(weights, layout.config().model)
    for rank in found:
        assert rank.reference.shape == (len(PAIRS), 2)
        assert rank.reference.dtype == np.float64
        assert distance(rank.reference, expected) < 1e-12
        assert (rank.again == rank.reference).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_base_under_an_adapter_is_a_reference_without_weights_of_its_own(prefix, tmp_path):
    layout = replace(LAYOUTS[0], lora=LoraConfig(rank=3, targets=("q_proj", "down_proj")))
    config = layout.config(sequence_length=24, micro_batch_size=2)
    policy = build_trainer(layout, config=config).model
    base = policy.base()
    store = open_store(prefix)
    weights = assemble([owned_blocks(base, "compute", base.stage.shards)])
    expected = in_a_plain_model(weights, config.model)
    assert distance(np.array(reference_of(store, base, "the base", tmp_path)), expected) < 1e-12
    assert distance(np.array(reference_of(store, policy, "the policy", tmp_path)), expected) > 1e-3
    assert {id(one) for one in base.stage.shards} < {id(one) for one in policy.stage.shards}


def test_numbers_are_kept_by_rows_weights_shape_and_precision_and_by_no_layout(model, prefix):
    store = open_store(prefix)
    key = key_of(store, model.config, "seed 7")
    wider = asked(replace(LAYOUTS[0], qk_norm=True))
    single = asked(replace(LAYOUTS[0], dtype="float32"))
    unsplit = asked(replace(LAYOUTS[0], recompute="full", loss_chunk=3, zero_stage=2))
    assert key_of(store, unsplit.config, "seed 7") == key
    others = [
        key_of(replace(store, key="other rows"), model.config, "seed 7"),
        key_of(store, model.config, "seed 8"),
        key_of(store, wider.config, "seed 7"),
        key_of(store, single.config, "seed 7"),
    ]
    assert len({key, *others}) == 5


def test_a_kept_file_is_read_and_a_damaged_one_is_made_anew(model, prefix, tmp_path):
    store = open_store(prefix)
    first = np.array(reference_of(store, model, "seed 7", tmp_path))
    (path,) = tmp_path.iterdir()
    np.save(path, first + 1)
    assert (reference_of(store, model, "seed 7", tmp_path) == first + 1).all()
    path.write_bytes(path.read_bytes()[:-8])
    assert (reference_of(store, model, "seed 7", tmp_path) == first).all()
    np.save(path, first[1:])
    assert (reference_of(store, model, "seed 7", tmp_path) == first).all()
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_not_finite_are_refused_by_row_and_not_kept(prefix, tmp_path):
    broken, store = asked(LAYOUTS[0]), open_store(prefix)
    broken.stage.shards[-1].values.fill_(float("nan"))
    with pytest.raises(DataError, match=r"row 0: the reference's log-probability is \[nan, nan\]: must be finite"):
        reference_of(store, broken, "broken", tmp_path)
    assert not list(tmp_path.iterdir())
