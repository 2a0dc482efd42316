"""Runs of adapters: what they stand on is not saved again, is found where it lies, and is there after a stop."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.runs import numbers_of, run_pretrain, tensors_of, tree_of, write_tokens

from megatron_lite.checkpoint.index import Index
from megatron_lite.errors import DataError
from megatron_lite.exchange import convert, open_source

LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.25, "targets": ["q_proj", "v_proj", "down_proj"]}
SMALL = {"model__num_hidden_layers": 2, "train__valid_every": None}
PARALLEL = {"tensor": 2, "zero_regather": "microbatch"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """With a base, as a Hugging Face directory: a run of 2 steps."""
    path = tmp_path_factory.mktemp("adapters")
    write_tokens(path / "train", 2000, seed=1)
    write_tokens(path / "valid", 500, seed=2)
    run_pretrain(tree_of(path / "first", path, **SMALL, train__steps=2), 1)
    convert(path / "first", path / "base", "hf")
    return path


def adapter_tree(run_dir: Path, data_dir: Path, **changes: Any) -> dict[str, Any]:
    given = {"train__steps": 4, "checkpoint__every": 2, "checkpoint__init": str(data_dir / "base"), **SMALL, **changes}
    return {**tree_of(run_dir, data_dir, train__neftune_alpha=5.0, **given), "lora": LORA}


def test_a_stopped_run_gives_the_same_bits_from_a_base_that_moved(ranks, data_dir, tmp_path):
    """On two ranks, which share the reading of its checksum; with dropout and noise."""
    base = shutil.copytree(data_dir / "base", tmp_path / "base")
    whole = adapter_tree(tmp_path / "whole", data_dir, checkpoint__init=str(base)) | {"parallel": PARALLEL}
    ranks.run(run_pretrain, 2, whole, 2)
    stopped = adapter_tree(tmp_path / "stopped", data_dir) | {"parallel": PARALLEL}
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_4")
    base.rename(tmp_path / "moved")
    stopped["checkpoint"]["init"] = str(tmp_path / "moved")
    ranks.run(run_pretrain, 2, stopped, 2)
    ends = [tmp_path / name / "checkpoints" / "step_4" for name in ("whole", "stopped")]
    assert tensors_of(ends[0]) == tensors_of(ends[1])
    assert numbers_of(tmp_path / "whole") == numbers_of(tmp_path / "stopped")
    one, other = (Index.load(end).main for end in ends)
    assert one.base == other.base and one.base.path == str(base)
    assert len(one.parameters) == 2 * 3 * 2 and all(".lora_" in name for name in one.parameters)

    stopped["checkpoint"]["init"] = str(data_dir / "first")  # the same weights, in a checkpoint
    stopped["train"]["steps"] = 5
    run_pretrain(stopped | {"parallel": {"zero_regather": "microbatch"}}, 1)
    stopped["checkpoint"]["init"] = str(tmp_path / "gone")
    with pytest.raises(DataError, match=r"stands on .*base \(checksum .*gone is not there: give its place"):
        run_pretrain(stopped | {"parallel": {"zero_regather": "microbatch"}}, 1)


def test_a_next_run_goes_on_with_the_adapter_and_a_whole_one_with_what_it_is_merged_to(data_dir, tmp_path):
    run_pretrain(adapter_tree(tmp_path / "one", data_dir), 1)
    run_pretrain(adapter_tree(tmp_path / "two", data_dir, checkpoint__init=str(tmp_path / "one")), 1)
    ends = [Index.load(tmp_path / name / "checkpoints" / "step_4").main for name in ("one", "two")]
    assert ends[0].base == ends[1].base and ends[1].updates == 4
    still = {**SMALL, "optim__lr": 1e-300, "train__steps": 1}
    run_pretrain(tree_of(tmp_path / "full", data_dir, **still, checkpoint__init=str(tmp_path / "two")), 1)
    merged, full = (
        open_source(tmp_path / name / "checkpoints" / f"step_{step}") for name, step in (("two", 4), ("full", 1))
    )
    assert full.adapter is None
    for name, stored in full.parameters.items():
        assert (stored.read() == merged.parameters[name].read()).all(), name
    other = adapter_tree(tmp_path / "other", data_dir, checkpoint__init=str(tmp_path / "one"))
    with pytest.raises(DataError, match=r"has lora.rank = 2 \(here 4\)"):
        run_pretrain({**other, "lora": {**LORA, "rank": 4}}, 1)


def test_what_a_run_saved_is_one_model_whichever_way_it_is_taken(data_dir, tmp_path):
    run_pretrain(adapter_tree(tmp_path / "run", data_dir, train__steps=1), 1)
    convert(tmp_path / "run", tmp_path / "peft", "peft")
    convert(tmp_path / "run", tmp_path / "merged", "ours", merge=True)
    found = {}
    for name in ("run", "peft", "merged"):
        source = open_source(tmp_path / name)
        found[name] = {one: stored.read().tolist() for one, stored in source.parameters.items()}
        assert (source.adapter is None) == (name == "merged")
    assert found["run"] == found["peft"] == found["merged"]
