"""Tensor 2 x pipeline 2 x data 2 as eight processes on one device: our kernels, gloo's messages through the CPU."""

import torch

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import machine_of
from gpu.meshes import Staged, with_communicators
from gpu.processes import on_ranks
from gpu.small import Losses, Small, alone, far, train, trainer_of
from megatron_lite.mesh import build_mesh

LAYOUT = {"tensor": 2, "pipeline": 2, "data": 2, "zero_stage": 3}
WORLD = 8
STEPS = 4


def run(day: Day, findings: Findings) -> None:
    machine = machine_of(day.toy)
    one = Small(preset="nano", steps=2 if day.toy else STEPS, length=64)
    many = Small(preset="nano", steps=one.steps, length=64, parallel=LAYOUT)
    right = train(alone(one, machine.device), one)
    found = on_ranks(one_rank, WORLD, "gloo", many, day.toy)
    for rank, losses in enumerate(found):
        if losses != found[0]:
            findings.say("ranks that differ", rank=rank, error=f"its losses are {losses}, rank 0's {found[0]}")
    findings.say(
        "against one process", layout="tensor 2 x pipeline 2 x data 2", dtype=one.dtype, kernels=machine.backend,
        steps=one.steps, far=far(found[0], right), losses=[loss for loss, _ in found[0]],
    )  # fmt: skip


def one_rank(rank: int, small: Small, toy: bool) -> Losses:
    device = machine_of(toy).device

    def staged(shape, placement):
        return with_communicators(build_mesh(shape, torch.device("cpu"), placement), Staged, device)

    return train(trainer_of(small, WORLD, staged), small)
