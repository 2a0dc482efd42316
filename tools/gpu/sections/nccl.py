"""Every call that the package makes, on NCCL in a world of one, and what communicators take."""

from collections.abc import Callable
from datetime import timedelta
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import Machine, machine_of
from gpu.processes import device_id_of
from megatron_lite.device import Urgency, group_options
from megatron_lite.parallel import collectives
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.transcript import _completes

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8)
TIMEOUT = timedelta(seconds=30)
GROUPS = 8  # a rank of the 65B model uses seven communicators


def run(day: Day, findings: Findings) -> None:
    machine = machine_of(day.toy)
    before = machine.bytes_taken()
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)
    dist.init_process_group(machine.group, store=store, rank=0, world_size=1, timeout=TIMEOUT,
                            device_id=device_id_of(machine.device))  # fmt: skip
    joined = machine.bytes_taken()
    findings.say("memory", what_for="joining the world", bytes=joined - before)
    for kind in get_args(Urgency):
        options = group_options(machine.device, kind, TIMEOUT)
        group = dist.new_group([0], use_local_synchronization=True, timeout=TIMEOUT, pg_options=options)
        for name, call in calls(group, machine).items():
            say_call(name, call, kind, machine, findings)
    taken = machine.bytes_taken()
    more = [dist.new_group([0], use_local_synchronization=True) for _ in range(GROUPS)]
    for group in more:
        dist.all_reduce(torch.zeros(1, device=machine.device), group=group)
    findings.say("memory", what_for=f"{GROUPS} more communicators of one rank", bytes=machine.bytes_taken() - taken)
    dist.destroy_process_group()


def say_call(name: str, call: Callable[[Tensor], Tensor], kind: str, machine: Machine, findings: Findings) -> None:
    """A call leaves a world of one's numbers as they are, in every dtype."""
    about = {"options": kind, "call": name}
    try:
        given = [torch.arange(128, device=machine.device).to(dtype) for dtype in DTYPES]
        unchanged = all(torch.equal(call(x.clone()), x) for x in given)
        findings.say("calls", **about, dtypes=DTYPES, unchanged=unchanged)
    except Exception as problem:  # other calls may still work
        findings.say("calls", **about, error=describe(problem))


def calls(group, machine: Machine) -> dict[str, Callable[[Tensor], Tensor]]:
    """As collectives.py makes them; its own communicator sends nothing where it is alone."""

    def into(operation: Callable) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            y = torch.empty_like(x)
            operation(y, x, group=group, async_op=True).wait()
            return y

        return call

    def all_reduce(x: Tensor) -> Tensor:
        dist.all_reduce(x, group=group, async_op=True).wait()
        return x

    def waited_for(x: Tensor) -> Tensor:
        """The transcript checker's wait."""
        if not _completes(dist.all_reduce(x, group=group, async_op=True), timedelta(seconds=5)):
            raise TimeoutError("an all-reduce of one rank did not complete in 5 s")
        return x

    found = {
        "all_gather": into(collectives._all_gather),
        "reduce_scatter": into(collectives._reduce_scatter),
        "all_reduce": all_reduce,
        "all_to_all": into(dist.all_to_all_single),
        "all_reduce with a limit": waited_for,
    }
    if machine.group == "nccl":  # gloo has no pair of one rank
        one = Communicator("test", (0,), 0, group)
        found["exchange"] = lambda x: one.exchange(x, 0, 0, "test").wait()
    return found
