"""A small model trained on this device, against a CPU in float64; again; with less kept; and the host's waits."""

import multiprocessing as mp
from dataclasses import replace

import torch
from megatron_lite.kernels.interpreter import interpreting, make_exact

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import Gpu, Machine, machine_of
from gpu.small import LEARNING_RATE, Losses, Small, alone, batches_of, far, train

DTYPES = ("float64", "float32", "bfloat16")
FULL = Small()
TOY = Small(preset="nano", steps=2, length=32)
LESS = {
    "selective": {"parallel": {"recompute": "selective"}},
    "full": {"parallel": {"recompute": "full"}},
    "chunks of logits": {"kernels": {"loss_chunk": 64}},
    "PyTorch's attention": {"kernels": {"attention": "sdpa"}},
}


def run(day: Day, findings: Findings) -> None:
    """A process for each dtype at once on a GPU, where most of the time is compilation."""
    if day.toy:
        for dtype in DTYPES:
            one_dtype(dtype, day.toy, findings)
        in_the_interpreter(findings)
        return
    context = mp.get_context("spawn")
    running = {dtype: context.Process(target=one_dtype, args=(dtype, day.toy, findings)) for dtype in DTYPES}
    for process in running.values():
        process.start()
    for dtype, process in running.items():
        process.join()
        if process.exitcode:
            findings.say("run", dtype=dtype, error=f"its process ended with code {process.exitcode}")


def one_dtype(dtype: str, toy: bool, findings: Findings) -> None:
    machine, small = machine_of(toy), replace(TOY if toy else FULL, dtype=dtype)
    for documents in (False, True):
        here = replace(small, documents=documents)
        right = train(alone(here.on_cpu(), torch.device("cpu")), here.on_cpu())
        for backend in dict.fromkeys((machine.backend, "torch")):
            say_run(replace(here, kernels={"backend": backend}), backend, machine, right, findings)
        if isinstance(machine, Gpu):
            say_waits(here, machine, findings)
    if dtype == "bfloat16":
        say_less_kept(replace(small, steps=min(small.steps, 3)), machine, findings)


def say_run(small: Small, backend: str, machine: Machine, right: Losses, findings: Findings) -> None:
    """Its distance from the CPU in float64, and whether a second run has the same bits."""
    about = {"dtype": small.dtype, "backend": backend, "documents": small.documents, "steps": small.steps}
    try:
        found, again = (train(alone(small, machine.device), small) for _ in range(2))
        findings.say("run", **about, far=far(found, right), repeats=found == again, last_loss=found[-1][0])
    except Exception as problem:  # other backends may still say something
        findings.say("run", **about, error=describe(problem))


def say_waits(small: Small, machine: Gpu, findings: Findings) -> None:
    """Where the host waited for the GPU in the second step; one read of its totals is allowed."""
    trainer = alone(small, machine.device)
    batches = batches_of(trainer, small, 0)
    trainer.train_step(batches, LEARNING_RATE)
    with machine.waits_of_the_host() as waits:
        trainer.train_step(batches, LEARNING_RATE)
    about = {"dtype": small.dtype, "documents": small.documents}
    places = [f"{place} x {count}" for place, count in waits.most_common(8)]
    findings.say("waits of the host", **about, count=waits.total(), places=places)


def say_less_kept(small: Small, machine: Machine, findings: Findings) -> None:
    """Whether ways to keep less give the same bits, as those that only compute again have to."""
    usual = train(alone(small, machine.device), small)
    for way, changes in LESS.items():
        try:
            found = train(alone(replace(small, **changes), machine.device), small)
            findings.say("less kept", way=way, same_bits=found == usual, far=far(found, usual))
        except Exception as problem:  # so may other ways
            findings.say("less kept", way=way, error=describe(problem))


def in_the_interpreter(findings: Findings) -> None:
    """A toy's only run of our kernels inside a training step."""
    if not interpreting():
        return
    make_exact()
    small = Small("nano", steps=1, length=16, sequences=1, microbatch=1, kernels={"backend": "triton"})
    cpu = torch.device("cpu")
    right = train(alone(small.on_cpu(), cpu), small.on_cpu())
    found = train(alone(small, cpu), small)
    findings.say(
        "run", dtype=small.dtype, backend="triton, interpreted", documents=False, steps=1, far=far(found, right)
    )
