import json
import os

import pytest
import torch
from safetensors import safe_open
from support.checkpoints import alter_index, assert_same, error_of_loading, owned, spoil, train, whole
from support.layouts import Layout, build_trainer, reshaped

from megatron_lite.checkpoint import find, load, open_checkpoint, save
from megatron_lite.errors import DataError

LAYOUT = Layout(layers=2)


@pytest.fixture
def trainer():
    return build_trainer(LAYOUT)


@pytest.fixture
def directory(tmp_path, trainer):
    """A run's checkpoints of steps 1 and 2."""
    for step in (1, 2):
        train(trainer, range(step, step + 1))
        save(tmp_path / "checkpoints", trainer, step, 12 * step, extra={"note": [1, "two"]})
    return tmp_path / "checkpoints"


def flip_bit(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of a tensor": lambda c: flip_bit(c / "rank_00000.safetensors", -5),
    "a torn file": lambda c: os.truncate(c / "rank_00000.safetensors", 1000),
    "a missing file": lambda c: (c / "rank_00000.safetensors").unlink(),
    "a torn index": lambda c: os.truncate(c / "index.json", 300),
    "a bit of the index": lambda c: flip_bit(c / "index.json", -9),
    "an index that is no object": lambda c: (c / "index.json").write_text("[]"),
    "a missing index": lambda c: (c / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_the_files_name_and_auto_takes_the_next_older(directory, trainer, caplog, damage):
    first = whole([owned(trainer)])  # step 2
    DAMAGES[damage](directory / "step_2")
    with pytest.raises(DataError) as error:
        open_checkpoint(directory / "step_2", trainer.mesh)
    named = "rank_00000.safetensors" if "file" in damage or "tensor" in damage else "index.json"
    assert f"step_2/{named}" in str(error.value) or ("step_2" in str(error.value) and named in str(error.value))
    assert "\n" not in str(error.value)

    found = find(directory, "auto", trainer.mesh)
    assert found.path.name == "step_1"
    assert "checkpoint step_2 is passed over: " in caplog.text
    assert load(found, trainer).step == 1
    train(trainer, range(2, 3))
    assert_same(whole([owned(trainer)]), first)


def test_auto_refuses_to_begin_again_where_all_are_damaged(directory, trainer):
    for step in (1, 2):
        os.truncate(directory / f"step_{step}" / "rank_00000.safetensors", 1000)
    with pytest.raises(DataError, match=r"step_2/rank_00000.safetensors has 1000 bytes.*none of the 2 checkpoints"):
        find(directory, "auto", trainer.mesh)


def test_what_resume_chooses(directory, trainer, tmp_path):
    assert find(directory, "none", trainer.mesh) is None
    assert find(tmp_path / "empty", "auto", trainer.mesh) is None
    assert find(directory, "auto", trainer.mesh).path == directory / "step_2"
    for path in (directory, directory.parent):
        assert find(tmp_path / "empty", str(path), trainer.mesh).path == directory / "step_2"
    assert find(tmp_path / "empty", str(directory / "step_1"), trainer.mesh).path == directory / "step_1"
    with pytest.raises(DataError, match="nowhere holds no checkpoint"):
        find(directory, str(tmp_path / "nowhere"), trainer.mesh)
    with pytest.raises(DataError, match=r"step_7 is no complete checkpoint"):
        find(directory, str(directory / "step_7"), trainer.mesh)


def test_progress_and_extra_come_back(directory, trainer):
    progress = load(find(directory, "auto", trainer.mesh), trainer)
    assert (progress.step, progress.samples, progress.tokens) == (2, 24, 24 * 16)
    assert progress.extra == {"note": [1, "two"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "model.num_hidden_layers = 2 (here 3)"),
        ({"vocab_size": 60}, "model.vocab_size = 61 (here 60)"),
        ({"tie_word_embeddings": True}, "model.tie_word_embeddings = False (here True)"),
        ({"rope_theta": 5e5}, "model.rope_theta = 10000.0 (here 500000.0)"),
    ],
)
def test_another_model_is_refused_by_its_fields(directory, change, said):
    config = LAYOUT.config()
    other = build_trainer(LAYOUT, config=reshaped(config, **change))
    with pytest.raises(DataError) as error:
        load(find(directory, "auto", other.mesh), other)
    assert f"step_2 is of another model: it has {said}" in str(error.value)


def drop_parameter(tree):
    del tree["parameters"]["model.norm.weight"]


def drop_block(tree):
    tree["parameters"]["model.layers.0.mlp.up_proj.weight"]["blocks"].pop()


def change_shape(tree):
    tree["parameters"]["model.norm.weight"] = {
        "shape": [8], "dtype": "float64", "blocks": [["rank_00000.safetensors", [0], [8]]]
    }  # fmt: skip


def newer_version(tree):
    tree["version"] = 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_parameter, "has no parameter model.norm.weight, which the model needs"),
        (drop_block, "model.layers.0.mlp.up_proj.weight: no block holds the element at [0, 0]"),
        (change_shape, "has model.norm.weight with shape [8], the model needs [32]"),
        (newer_version, "'version': 2"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(directory, trainer, change, said):
    alter_index(directory / "step_2", change)
    with pytest.raises(DataError) as error:
        load(open_checkpoint(directory / "step_2", trainer.mesh), trainer)
    assert said in str(error.value)


def test_every_rank_refuses_what_one_found_damaged(ranks, tmp_path, trainer):
    save(tmp_path, trainer, 1, 12)
    flip_bit(tmp_path / "step_1" / "rank_00000.safetensors", -1)
    # One file is checked on one rank alone.
    errors = ranks.run(error_of_loading, 2, Layout(data=2, layers=2), tmp_path)
    assert errors[0] == errors[1]
    assert "rank_00000.safetensors has the checksum" in errors[0]


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float64", "float32"), ("float32", "float64"), ("bfloat16", "float32")]
)
def test_another_dtype_is_converted_once(tmp_path, stored, wanted):
    source = build_trainer(Layout(layers=2, dtype=stored))
    train(source, range(1, 2))
    save(tmp_path, source, 1, 12)
    target = build_trainer(Layout(layers=2, dtype=wanted))
    spoil(target)
    load(find(tmp_path, "auto", target.mesh), target)
    for ours, theirs in zip(target.stage.shards, source.stage.shards, strict=True):
        assert torch.equal(ours.master, theirs.master.to(ours.master.dtype))


def test_a_checkpoint_is_safetensors_and_json_that_say_what_they_hold(directory):
    inside = sorted(path.name for path in (directory / "step_2").iterdir())
    assert inside == ["index.json", "rank_00000.safetensors"]
    tree = json.loads((directory / "step_2" / "index.json").read_text())["checkpoint"]
    assert tree["model"]["hidden_size"] == 32 and tree["config"]["train"]["seed"] == 7
    assert tree["parameters"]["model.layers.1.mlp.down_proj.weight"] == {
        "shape": [32, 40], "dtype": "float64", "trained": True,
        "blocks": [["rank_00000.safetensors", [0, 0], [32, 40]]],
    }  # fmt: skip
    with safe_open(directory / "step_2" / "rank_00000.safetensors", "pt") as file:
        assert file.get_tensor("exp_avg/model.norm.weight[0:32]").shape == (32,)
    mode = (directory / "step_2" / "index.json").stat().st_mode
    assert (directory / "step_2" / "rank_00000.safetensors").stat().st_mode == mode


def test_the_bytes_of_a_checkpoint_are_a_function_of_the_state(directory, trainer, tmp_path):
    load(find(directory, "auto", trainer.mesh), trainer)
    again = save(tmp_path / "again", trainer, 2, 24, extra={"note": [1, "two"]})
    for path in again.iterdir():
        assert path.read_bytes() == (directory / "step_2" / path.name).read_bytes()
