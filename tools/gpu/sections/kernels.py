"""Every kernel case of the tests on this device: against float64, twice, with strides, in memory full of NaN."""

import multiprocessing as mp
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import torch
from megatron_lite.kernels.interpreter import interpreting, make_exact
from support.kernels.cases import CASES
from support.kernels.harness import Case, copied, error, fresh, size_of, strided, widened
from torch import Tensor

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import Machine, machine_of, poisoned_memory

DTYPES = (torch.bfloat16, torch.float32)
ALL, TOY = (None, DTYPES), (1, DTYPES[:1])  # how many sizes of a case, in which dtypes
WORKERS = 8  # processes at once, on a GPU: most of the time goes into compilation


def run(day: Day, findings: Findings) -> None:
    """A process for each operation: an illegal access ends a process's GPU for good."""
    names = [case.name for case in CASES]
    if day.toy:
        for name in names:
            say_cases(name, machine_of(day.toy), TOY, findings)
        return
    with ThreadPoolExecutor(WORKERS) as waiting:
        for name, code in zip(names, waiting.map(lambda name: _in_a_process(name, findings), names), strict=True):
            if code:
                findings.say("case", case=name, error=f"its process ended with code {code}")


def _in_a_process(name: str, findings: Findings) -> int:
    process = mp.get_context("spawn").Process(target=on_the_gpu, args=(name, findings))
    process.start()
    process.join()
    return process.exitcode


def on_the_gpu(name: str, findings: Findings) -> None:
    say_cases(name, machine_of(toy=False), ALL, findings)


def say_cases(name: str, machine: Machine, which: tuple[int | None, tuple], findings: Findings) -> None:
    """One line for each size and dtype of an operation's cases."""
    if interpreting():
        make_exact()
    sizes, dtypes = which
    case = next(case for case in CASES if case.name == name)
    for size, dtype in product(case.sizes[:sizes], dtypes):
        about = {"case": name, "size": str(size), "dtype": dtype}
        try:
            findings.say("case", **about, **compare(case, size, dtype, machine.device))
        except Exception as problem:  # other sizes may still say something
            findings.say("case", **about, error=describe(problem))


def compare(case: Case, size: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """`worst_of_allowed` is the largest error as a share of what the tests allow: twice plain PyTorch's on the same
    device, three times in backward, and half a last place of the largest number.
    """
    arguments = case.inputs(size, dtype, fresh())
    exact = case.reference(*copied(widened(arguments)))
    with poisoned_memory():
        ours = _here(case.kernel(*_there(arguments, device)))
        again = _here(case.kernel(*_there(arguments, device)))
        # What finds its tensors by their addresses takes no others.
        bent = ours if case.by_address else _here(case.kernel(*_there(strided(arguments), device)))
    torchs = _here(case.reference(*_there(arguments, device)))
    shares = [_share(case, *three) for three in zip(ours, torchs, exact, strict=True)]
    return {"worst_of_allowed": max(shares), "repeats": _same(ours, again), "strides": _same(ours, bent)}


def _share(case: Case, ours: Tensor, torchs: Tensor, exact: Tensor) -> float:
    place = (2**-9 if ours.dtype == torch.bfloat16 else 2**-22) * size_of(exact)
    allowed = [(3 if case.backward else 2) * theirs + place for theirs in error(torchs, exact)]
    return max(mine / bound for mine, bound in zip(error(ours, exact), allowed, strict=True))


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(error(a, b)[0] == 0 for a, b in zip(one, other, strict=True))


def _there(arguments: tuple, device: torch.device) -> tuple:
    """Copies on a device, with the strides they have."""
    return tuple(_moved(a, device) if isinstance(a, Tensor) else a for a in arguments)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0 or span == tensor.numel():
        return tensor.to(device, copy=True)
    room = torch.zeros(span, dtype=tensor.dtype, device=device)
    view = room.as_strided(tensor.shape, tensor.stride())
    return view.copy_(tensor)


def _here(results) -> list[Tensor]:
    return [result.detach().cpu().clone() for result in results]
