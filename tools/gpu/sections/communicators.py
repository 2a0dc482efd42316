"""What a communicator of two ranks takes of the GPU's memory at its first use."""

from typing import Any

import torch
import torch.distributed as dist

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import machine_of
from gpu.processes import TIMEOUT, on_ranks
from gpu.sections.overlap import URGENCIES
from megatron_lite.device import group_options
from megatron_lite.parallel.collectives import Communicator

USES = ("all_reduce", "channel")


def run(day: Day, findings: Findings) -> None:
    first, _ = on_ranks(one_rank, 2, "gloo" if day.toy else "nccl", day.toy)
    for found in first:
        findings.say("communicator", **found)


def one_rank(rank: int, toy: bool) -> list[dict[str, Any]]:
    machine = machine_of(toy, rank)
    number = torch.zeros(2**22, device=machine.device)  # 16 MiB, as a message between stages
    dist.all_reduce(number)  # the world's own, and what CUDA takes once
    found = []
    for name in URGENCIES:
        for use in USES:
            taken = machine.bytes_taken()
            group = dist.new_group([0, 1], timeout=TIMEOUT, pg_options=group_options(machine.device, name, TIMEOUT))
            pair = Communicator("test", (0, 1), rank, group)
            if use == "all_reduce":
                pair.all_reduce(number, use).wait()
            elif rank == 0:
                pair.send(number, 1, use).wait()
            else:
                pair.receive(number, 0, use).wait()
            found.append({"options": name, "use": use, "bytes": machine.bytes_taken() - taken})
    return found
