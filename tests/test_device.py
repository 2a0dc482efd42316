"""Which device a process takes, and what its process groups and the libraries beneath are told."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_lite.device import accelerator_environment, choose_device, group_options, local_device, memory_of
from megatron_lite.errors import UsageError
from megatron_lite.place import Place, find_place


def place(ranks: int) -> Place:
    return Place(rank=0, world_size=ranks, local_rank=0, local_world_size=ranks)


@pytest.mark.parametrize(
    ("asked", "kind", "count", "ranks", "taken"),
    [
        ("auto", None, 0, 1, "cpu"),
        ("auto", "cuda", 1, 1, "cuda"),
        ("auto", "cuda", 1, 8, "cpu"),  # a workstation with one GPU and the quickstart's eight ranks
        ("auto", "cuda", 8, 8, "cuda"),
        ("auto", "xpu", 8, 2, "xpu"),
        ("cpu", "cuda", 8, 8, "cpu"),
        ("cuda", "cuda", 8, 4, "cuda"),
    ],
)
def test_auto_takes_an_accelerator_where_the_node_has_one_for_each_rank(asked, kind, count, ranks, taken):
    found, why = choose_device(asked, kind, count, place(ranks))
    assert found == taken
    assert why.startswith(f"device: {taken} (")


@pytest.mark.parametrize(
    ("kind", "count", "has"), [(None, 0, "none"), ("cuda", 1, "1 of kind cuda"), ("xpu", 8, "8 of kind xpu")]
)
def test_a_gpu_that_is_asked_for_and_is_not_there_is_refused(kind, count, has):
    with pytest.raises(UsageError, match=f"^device = cuda: needs one for each of this node's 2 ranks, it has {has}"):
        choose_device("cuda", kind, count, place(2))


def test_cpu_is_taken_without_asking_what_else_there_is():
    assert local_device("cpu", place(8)) == (torch.device("cpu"), "device: cpu (asked for)")


def test_a_launcher_that_does_not_count_the_nodes_ranks_is_taken_to_have_started_all_there(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert find_place().local_world_size == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_place().local_world_size == 2


def test_channels_get_two_multiprocessors_and_gathers_go_first(monkeypatch):
    """NCCL's options are not in a CPU build of torch; these have the fields of its type stubs."""

    class Options:
        def __init__(self, is_high_priority_stream: bool = False):
            self.is_high_priority_stream, self.config, self._timeout = is_high_priority_stream, SimpleNamespace(), None

    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=Options), raising=False)
    cuda, minute = torch.device("cuda", 0), timedelta(minutes=1)
    assert group_options(torch.device("cpu"), "first", minute) is None
    first, small, usual = (group_options(cuda, urgency, minute) for urgency in ("first", "small", "usual"))
    assert (first.is_high_priority_stream, small.is_high_priority_stream, usual.is_high_priority_stream) == (
        True,
        False,
        False,
    )
    assert small.config.max_ctas == 2
    assert not hasattr(first.config, "max_ctas")
    assert {options._timeout for options in (first, small, usual)} == {minute}


def test_nccl_writes_its_last_calls_beside_the_run_when_a_rank_waits_in_vain(tmp_path: Path):
    told = accelerator_environment(tmp_path / "flight")
    assert told["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert (
        told["TORCH_FR_DUMP_TEMP_FILE"] == told["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == str(tmp_path / "flight" / "rank_")
    )
    assert int(told["TORCH_FR_BUFFER_SIZE"]) > 7_700  # a step of a stage of the 65B model on 512 GPUs
    assert told["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_memory_on_a_cpu_is_the_resident_sets_peak():
    memory = memory_of(torch.device("cpu"))
    assert memory.peak > 100 * 2**20  # torch alone
    assert (memory.reserved, memory.free) == (0, 0)
