"""Layouts of two ranks against one process on a CPU in float64."""

from dataclasses import replace

import torch

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import machine_of
from gpu.processes import on_ranks
from gpu.sections.connect import LAYOUTS
from gpu.small import Losses, Small, alone, far, train, trainer_of
from megatron_lite.mesh import build_mesh

DTYPES = ("float64", "float32")


def run(day: Day, findings: Findings) -> None:
    usual = Small(preset="nano", steps=2 if day.toy else 5, length=64)
    right = train(alone(usual.on_cpu(), torch.device("cpu")), usual.on_cpu())
    for name, parallel in LAYOUTS.items():
        runs = [replace(usual, dtype=dtype, parallel=parallel) for dtype in DTYPES]
        try:
            first, second = on_ranks(one_rank, 2, "gloo" if day.toy else "nccl", runs, day.toy, seconds=60)
        except Exception as problem:  # the next layout may still work
            findings.say("against one process", layout=name, error=describe(problem))
            continue
        for small, found, other in zip(runs, first, second, strict=True):
            differ = {} if found == other else {"error": f"rank 0 says {found}, rank 1 {other}"}
            about = {"layout": name, "dtype": small.dtype, "steps": small.steps}
            findings.say("against one process", **about, far=far(found, right), **differ)


def one_rank(rank: int, runs: list[Small], toy: bool) -> list[Losses]:
    device = machine_of(toy, rank).device
    return [train(trainer_of(run, 2, lambda shape, where: build_mesh(shape, device, where)), run) for run in runs]
