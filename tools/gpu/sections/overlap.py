"""Products beside messages of a group with different options, between two GPUs."""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, get_args

import torch
import torch.distributed as dist

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import Machine, machine_of, median_ms
from gpu.processes import TIMEOUT, on_ranks
from megatron_lite.device import Urgency, group_options
from megatron_lite.parallel.collectives import Communicator

URGENCIES = get_args(Urgency)  # "first" has a stream of high priority, "small" kernels of at most two blocks


@dataclass(frozen=True)
class Sizes:
    """A product [tokens, rows] over `hidden`, and a gather of [tokens, hidden] from both ranks' halves."""

    tokens: int = 8192
    hidden: int = 8192
    rows: int = 6400
    repeats: int = 15
    late_s: float = 0.5  # how late a message comes that is waited for


TOY = Sizes(64, 64, 50, 3, 0.05)


def run(day: Day, findings: Findings) -> None:
    sizes = TOY if day.toy else Sizes()
    for what, function in (("gather beside a product", beside_gather), ("receive beside a product", beside_receive)):
        first, _ = on_ranks(on_both, 2, "gloo" if day.toy else "nccl", function, sizes, day.toy)
        for options, found in first.items():
            findings.say(what, options=options, **found)


def on_both(rank: int, function, sizes: Sizes, toy: bool) -> dict[str, dict[str, Any]]:
    machine, found = machine_of(toy, rank), {}
    for name in URGENCIES:
        group = dist.new_group([0, 1], timeout=TIMEOUT, pg_options=group_options(machine.device, name, TIMEOUT))
        found[name] = function(Communicator("tensor", (0, 1), rank, group), sizes, machine)
    return found


def _product(sizes: Sizes, machine: Machine):
    x, w = (torch.randn(n, sizes.hidden, device=machine.device).to(torch.bfloat16) for n in (sizes.tokens, sizes.rows))
    return lambda: torch.mm(x, w.t())


def beside_gather(pair: Communicator, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """`hidden`: how much of the shorter of both does not show when the gather is issued first and waited for last."""
    product = _product(sizes, machine)
    half = torch.randn(sizes.tokens // 2, sizes.hidden, device=machine.device).to(torch.bfloat16)

    def both() -> None:
        handle = pair.all_gather(half, "gather")
        product()
        handle.wait()

    gather_ms = median_ms(machine, lambda: pair.all_gather(half, "gather").wait(), sizes.repeats)
    product_ms = median_ms(machine, product, sizes.repeats)
    both_ms = median_ms(machine, both, sizes.repeats)
    hidden = (gather_ms + product_ms - both_ms) / min(gather_ms, product_ms)
    received = half.nbytes / gather_ms * 1e3
    return {"gather_ms": gather_ms, "product_ms": product_ms, "both_ms": both_ms, "hidden": hidden,
            "received_bytes_per_second": received}  # fmt: skip


def beside_receive(pair: Communicator, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """How much longer products take while a receive waits for a message that comes late."""
    product = _product(sizes, machine)
    message = torch.zeros(sizes.tokens // 8, sizes.hidden, dtype=torch.bfloat16, device=machine.device)
    _pass(pair, message).wait()  # connected before anything is timed
    alone_ms = median_ms(machine, product, sizes.repeats)
    pair.all_reduce(torch.zeros(1, device=machine.device), "meet").wait()
    machine.synchronize()
    if pair.rank == 1:
        time.sleep(sizes.late_s)
        _pass(pair, message).wait()
        machine.synchronize()
        return {}
    handle = _pass(pair, message)
    marks = [machine.mark()]
    for _ in range(sizes.repeats):
        product()
        marks.append(machine.mark())
    beside_ms = median(machine.between_ms(begin, end) for begin, end in pairwise(marks))
    handle.wait()
    machine.synchronize()
    return {"product_ms": alone_ms, "beside_ms": beside_ms, "slower": beside_ms / alone_ms}


def _pass(pair: Communicator, message: torch.Tensor):
    """From rank 1 to rank 0."""
    return pair.send(message, 0, "message") if pair.rank == 1 else pair.receive(message, 1, "message")
