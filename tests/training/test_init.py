"""A run that begins with another's weights: at step 0, with nothing else of it, and once."""

import json
import logging
from pathlib import Path

import pytest
from support.runs import metrics_of, run_pretrain, tensors_of, tree_of, write_tokens

from megatron_lite.errors import DataError
from megatron_lite.exchange import convert, open_source

STILL = {"optim__lr": 1e-300, "train__valid_every": None}  # a step changes no weight


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """With a run of 4 steps, `first`."""
    path = tmp_path_factory.mktemp("init")
    write_tokens(path / "train", 2000, seed=1)
    write_tokens(path / "valid", 500, seed=2)
    run_pretrain(tree_of(path / "first", path, train__steps=4), 1)
    return path


def weights(run_dir: Path, step: int, kind: str = "master") -> dict[str, bytes]:
    tensors = tensors_of(run_dir / "checkpoints" / f"step_{step}")
    return {key.replace(kind, "weight", 1): value for key, value in tensors.items() if f"/{kind}/" in key}


def values(run_dir: Path, step: int) -> dict[str, list]:
    """Logical parameters, whichever blocks they are stored in."""
    parameters = open_source(run_dir / "checkpoints" / f"step_{step}").parameters
    return {name: stored.read().tolist() for name, stored in parameters.items()}


def index_of(run_dir: Path, step: int) -> dict:
    path = run_dir / "checkpoints" / f"step_{step}" / "index.json"
    return json.loads(path.read_text(encoding="utf-8"))["checkpoint"]


def test_a_run_begins_at_step_0_with_the_weights_alone(data_dir, caplog):
    second = data_dir / "still"
    with caplog.at_level(logging.INFO, "megatron_lite"):
        run_pretrain(tree_of(second, data_dir, **STILL, train__steps=1, checkpoint__init=str(data_dir / "first")), 1)
    assert f"begins with the weights of {data_dir / 'first' / 'checkpoints' / 'step_4'}" in caplog.text
    assert weights(second, 1) == weights(data_dir / "first", 4)
    assert [line["step"] for line in metrics_of(second)] == [1]
    assert (index_of(second, 1)["updates"], index_of(second, 1)["samples"]) == (1, 8)


def test_it_goes_on_from_its_own_checkpoints_then_on_any_layout(ranks, data_dir):
    second = data_dir / "moved"
    tree = tree_of(second, data_dir, train__steps=2, checkpoint__init=str(data_dir / "first"))
    ranks.run(run_pretrain, 2, tree | {"parallel": {"tensor": 2, "zero_regather": "microbatch"}}, 2)
    tree["train"]["steps"], tree["checkpoint"]["init"] = 4, str(data_dir / "gone")
    run_pretrain(tree, 1)
    assert [line["step"] for line in metrics_of(second)] == [1, 2, 3, 4]
    assert index_of(second, 4)["updates"] == 4
    tree["checkpoint"]["resume"] = "none"
    with pytest.raises(DataError, match=r"gone is no model: it must be"):
        run_pretrain(tree, 1)


def test_a_hugging_face_directory_will_do_on_any_layout(ranks, data_dir):
    convert(data_dir / "first", data_dir / "hf", "hf")
    tree = tree_of(data_dir / "from_hf", data_dir, **STILL, train__steps=1, checkpoint__init=str(data_dir / "hf"))
    ranks.run(run_pretrain, 2, tree | {"parallel": {"pipeline": 2, "zero_regather": "step"}}, 2)
    assert values(data_dir / "from_hf", 1) == values(data_dir / "first", 4)
    tree["model"]["rope_theta"], tree["train"]["run_dir"] = 5e5, str(data_dir / "other_hf")
    with pytest.raises(DataError, match=r"hf is of another model: it has model.rope_theta = 10000.0"):
        run_pretrain(tree, 1)


def test_a_moving_average_begins_with_them(data_dir):
    init = str(data_dir / "first")
    run_pretrain(
        tree_of(data_dir / "averaged", data_dir, **STILL, train__steps=1, checkpoint__init=init, train__ema=0.5), 1
    )
    assert weights(data_dir / "averaged", 1, "ema") == weights(data_dir / "first", 4)


def test_another_model_is_refused(data_dir):
    init = str(data_dir / "first" / "checkpoints")
    tree = tree_of(data_dir / "other", data_dir, checkpoint__init=init, model__rope_theta=5e5)
    with pytest.raises(DataError, match=r"step_4 is of another model: it has model.rope_theta = 10000.0"):
        run_pretrain(tree, 1)


def test_what_is_frozen_comes_from_there_too(data_dir):
    init = str(data_dir / "first" / "checkpoints" / "step_4")
    changes = {"train__trainable": ["*.mlp.*"], "train__steps": 2}
    run_pretrain(tree_of(data_dir / "frozen", data_dir, checkpoint__init=init, **changes), 1)
    before, after = weights(data_dir / "first", 4), weights(data_dir / "frozen", 2)
    assert before.keys() == after.keys()
    assert {key for key in after if after[key] != before[key]} == {key for key in after if ".mlp." in key}
