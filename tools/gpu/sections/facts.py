"""What machine this is, what would run on it, and what a copy reaches."""

import sys

import torch
import triton
from megatron_lite.kernels.choice import Work, choose
from megatron_lite.kernels.launch import target_of

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import machine_of, median_ms
from megatron_lite.training.flops import peak_flops

# Memory's bytes a second from NVIDIA's data sheets (A100 SXM 80 GB, H100 SXM, H200 SXM, HGX B200).
PUBLISHED = {"A100": 2.039e12, "H100": 3.35e12, "H200": 4.8e12, "B200": 8.0e12}


def run(day: Day, findings: Findings) -> None:
    machine = machine_of(day.toy)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    about = machine.about()
    findings.say("machine", **versions, **about)
    for dtype in ("bfloat16", "float32"):
        chosen = choose("auto", "auto", "auto", Work(machine.device.type, dtype, 128))
        findings.say("choice", dtype=dtype, target=target_of(machine.device), choice=str(chosen))
    count = 2**20 if day.toy else 2**29
    source = torch.empty(count, dtype=torch.bfloat16, device=machine.device).normal_()
    target = torch.empty_like(source)
    ms = median_ms(machine, lambda: target.copy_(source), repeats=20)
    reached = {"bytes_per_second": 2 * source.nbytes / ms * 1e3}
    published = next((rate for name, rate in PUBLISHED.items() if name in about["gpu"]), None)
    if published is not None:
        reached["share_of_published"] = reached["bytes_per_second"] / published
    findings.say("copy", **reached)
    edge = 256 if day.toy else 8192
    left, right = (torch.randn(edge, edge, device=machine.device).to(torch.bfloat16) for _ in range(2))
    flops = 2 * edge**3 / median_ms(machine, lambda: left @ right, repeats=20) * 1e3
    peak = peak_flops(about["gpu"], "bfloat16")
    findings.say("product", tflops=flops / 1e12, **({"share_of_published": flops / peak} if peak else {}))
