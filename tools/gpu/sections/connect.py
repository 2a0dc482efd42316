"""Layouts of two ranks from nothing to their second step: whether everything connects, and in what time."""

import time
from typing import Any

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import machine_of
from gpu.processes import on_ranks
from gpu.small import LEARNING_RATE, Small, batches_of, trainer_of
from megatron_lite.mesh import build_mesh

LAYOUTS = {
    "pipeline 2": {"pipeline": 2},
    "tensor 2": {"tensor": 2},
    "data 2": {"data": 2, "zero_stage": 3},
    "context 2": {"context": 2},
}
PATIENCE = 25  # seconds for one layout; nothing is compiled in them


def run(day: Day, findings: Findings) -> None:
    for name, parallel in LAYOUTS.items():
        small = Small(preset="nano" if day.toy else "tiny", length=64, parallel=parallel, kernels={"backend": "torch"})
        try:
            group = "gloo" if day.toy else "nccl"
            for rank, times in enumerate(on_ranks(one_rank, 2, group, small, day.toy, seconds=PATIENCE)):
                findings.say("layout", layout=name, rank=rank, **times)
        except Exception as problem:  # the next layout may still connect
            findings.say("layout", layout=name, error=describe(problem))


def one_rank(rank: int, small: Small, toy: bool) -> dict[str, Any]:
    """Seconds of each part, and what the GPU holds more at the end: model, context of CUDA, communicators."""
    machine = machine_of(toy, rank)
    taken, marks = machine.bytes_taken(), [time.perf_counter()]

    def passed() -> None:
        machine.synchronize()
        marks.append(time.perf_counter())

    def make_mesh(shape, placement):
        mesh = build_mesh(shape, machine.device, placement)
        passed()
        return mesh

    trainer = trainer_of(small, 2, make_mesh)
    passed()
    for step in range(2):
        trainer.train_step(batches_of(trainer, small, step), LEARNING_RATE)
        passed()
    parts = ("connecting_s", "rehearsal_s", "first_step_s", "second_step_s")
    times = {part: end - begin for part, begin, end in zip(parts, marks, marks[1:], strict=False)}
    return times | {"bytes": machine.bytes_taken() - taken}
