"""auto becomes step where it fits the smallest device, every rank decides the same, and a resumed run keeps it."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import yaml
from support.layouts import Layout, build_trainer
from support.runs import run_pretrain, start_pretrain, tree_of, world_here, write_tokens

from megatron_lite.config import config_from_tree, resolve
from megatron_lite.device import _control_group_limits, host_memory, total_memory
from megatron_lite.errors import UsageError
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.zero import policy_of
from megatron_lite.place import Place
from megatron_lite.planning import regather
from megatron_lite.planning.memory_forms import peak_memory
from megatron_lite.planning.paper import step_on_paper
from megatron_lite.planning.regather import ACCELERATOR, HOST, Need, decide, decided, needed, with_regather
from megatron_lite.planning.traffic import step_traffic

CPU = torch.device("cpu")
AUTO = Layout(pipeline=2, data=2, zero_regather="auto")


@pytest.fixture
def data_dir(tmp_path):
    write_tokens(tmp_path / "train", 2000, seed=1)
    write_tokens(tmp_path / "valid", 500, seed=2)
    return tmp_path


@pytest.mark.parametrize(
    ("device", "margin", "before", "expected"),
    [
        (100, ACCELERATOR, None, ("step", False)),  # 90 are there, 90 are needed
        (99, ACCELERATOR, None, ("microbatch", False)),
        (180, HOST, None, ("step", False)),
        (179, HOST, None, ("microbatch", False)),
        (100, ACCELERATOR, ("step_4", "microbatch"), ("microbatch", True)),
        (99, ACCELERATOR, ("step_4", "microbatch"), ("microbatch", True)),
        (100, ACCELERATOR, ("step_4", "step"), ("step", True)),
        (99, ACCELERATOR, ("step_4", "step"), ("microbatch", False)),
    ],
)
def test_step_is_taken_where_it_fits_and_what_was_taken_is_kept_while_it_fits(device, margin, before, expected):
    decision = decide(Need(step=90, microbatch=50, device=device), margin, before)
    assert (decision.chosen, decision.kept) == expected


def test_the_log_says_what_either_needs_and_what_is_there():
    need = Need(step=30 * 2**30, microbatch=25 * 2**30, device=80 * 2**30)
    assert str(decide(need, ACCELERATOR)) == (
        "zero_regather: auto takes step: step needs 30.00 GiB on the fullest rank, microbatch 25.00 GiB; there are "
        "72.00 GiB of the smallest device's 80.00 GiB for it (the rest is for the context, communicators, workspaces "
        "and the allocator's fragmentation)"
    )
    small = decide(Need(step=3 * 2**20, microbatch=2**20, device=2**30), HOST)
    assert "step needs 3.0 MiB on the fullest rank, microbatch 1.0 MiB; there are 512.0 MiB of" in str(small)
    kept = decide(need, ACCELERATOR, ("step_4", "microbatch"))
    assert "auto keeps microbatch, as step_4 has: step needs 30.00" in str(kept)
    lost = decide(replace(need, device=33 * 2**30), ACCELERATOR, ("step_4", "step"))
    assert "auto takes microbatch, not step, which step_4 has: step needs 30.00" in str(lost)


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "interleaved_1f1b", "virtual": 2},
        {"schedule": "zb_v", "virtual": 2},
        {"schedule": "gpipe"},
    ],
    ids=lambda schedule: schedule["schedule"],
)
def test_a_full_pipeline_needs_what_the_whole_step_needs(schedule):
    sizes = {"pipeline": 4, "schedule": schedule["schedule"], "virtual_stages": schedule.get("virtual", 1)}
    config = config_from_tree(
        {
            "model": {"preset": "nano", "num_hidden_layers": 8},
            "parallel": sizes,
            "optim": {"lr": 1e-3},
            "train": {"steps": 1, "global_batch_size": 56, "sequence_length": 64, "run_dir": "unused"},
        }
    )
    resolved = resolve(config, 8)
    whole = schedule_of(config, resolved, 28)
    peaks = [
        max(peak_memory(with_regather(config, choice), resolved, whole, stage).total for stage in range(4))
        for choice in ("step", "microbatch")
    ]
    assert needed(config, resolved, range(4), 7) == Need(*peaks, device=7)
    assert peaks[0] > peaks[1]


TWO_STAGES = Layout(pipeline=2, zero_regather="auto")


def decide_with(sizes: list[int]) -> str:
    """One rank's decision where the devices' memory is as given by rank."""
    rank = torch.distributed.get_rank()
    with mock.patch.object(regather, "total_memory", lambda device, local_world_size: sizes[rank]):
        return decided(TWO_STAGES.config(), Place(rank, 2, rank, 2), world_here(2)).parallel.zero_regather


def test_all_ranks_decide_by_the_fullest_rank_and_the_smallest_device(ranks):
    config = TWO_STAGES.config()
    needs = [needed(config, resolve(config, 2), [stage], 0).step for stage in (0, 1)]
    assert needs[0] != needs[1]
    sizes = [2 * max(needs)] * 2  # half of which is just enough
    assert ranks.run(decide_with, 2, sizes) == ["step"] * 2
    sizes[needs.index(min(needs))] -= 2  # where less is needed
    assert ranks.run(decide_with, 2, sizes) == ["microbatch"] * 2


@pytest.mark.parametrize("choice", ["microbatch", "step"])
def test_what_is_asked_for_is_left_alone(choice):
    config = replace(AUTO, zero_regather=choice).config()
    assert decided(config, Place(0, 4, 0, 4), world_here()) is config


def test_auto_is_never_taken_for_something():
    config = AUTO.config()
    resolved = resolve(config, 4)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    attempts = [
        lambda: build_trainer(Layout(zero_regather="auto")),
        lambda: step_traffic(config, resolved, schedule, 0),
        lambda: peak_memory(config, resolved, schedule, 0),
        lambda: step_on_paper(config, 4, 0),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError, match=r"^parallel\.zero_regather = auto: must have become microbatch or step"):
            attempt()
    with pytest.raises(ValueError, match=r"^zero_regather = auto: must be one of microbatch, step"):
        policy_of(3, "auto")


def test_a_run_writes_down_what_auto_became_and_keeps_it_when_it_goes_on(data_dir):
    """A run that took microbatch goes on under auto, which alone would take step."""
    run_dir = data_dir / "run"
    run_pretrain(tree_of(run_dir, data_dir, train__steps=4), 1)
    auto = {"parallel__zero_regather": "auto", "train__steps": 8}
    process = start_pretrain(tree_of(run_dir, data_dir, **auto), 1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("zero_regather: auto keeps microbatch, as step_4 has: ") == 1, output
    assert written(run_dir) == "microbatch"

    fresh = config_from_tree(tree_of(data_dir / "fresh", data_dir, **auto))
    assert decided(fresh, Place(0, 1, 0, 1), world_here()).parallel.zero_regather == "step"
    for resume, expected in ((str(run_dir), "microbatch"), ("none", "step")):
        checkpoint = fresh.checkpoint.model_copy(update={"resume": resume})
        again = fresh.model_copy(update={"checkpoint": checkpoint})
        assert decided(again, Place(0, 1, 0, 1), world_here()).parallel.zero_regather == expected


def written(run_dir) -> str:
    return yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["parallel"]["zero_regather"]


def test_ranks_of_a_cpu_share_its_memory_and_a_control_group_may_have_less(tmp_path):
    assert total_memory(CPU, 4) == host_memory() // 4
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    (groups / "job" / "step").mkdir(parents=True)
    own.write_text("4:memory:/elsewhere\n0::/job/step\n")
    for path, limit in ((groups, "900"), (groups / "job", "700"), (groups / "job" / "step", "max")):
        (path / "memory.max").write_text(f"{limit}\n")
    assert list(_control_group_limits(groups, own)) == [700, 900]
    assert list(_control_group_limits(groups, tmp_path / "none")) == []
