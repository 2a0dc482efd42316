"""Products of matrices at the shapes of one rank of the 65B model, and what runs beside them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from megatron_lite.kernels.weight_gradient import add_product_

from gpu.day import Day
from gpu.findings import Findings
from gpu.machine import Gpu, Machine, machine_of, median_ms

COPIED = 2**28  # bytes
HELD = (0, 2, 4, 8, 16, 24)  # multiprocessors that something else holds


@dataclass(frozen=True)
class Product:
    """y [tokens, rows] = x [tokens, columns] w^T."""

    weight: str
    tokens: int
    rows: int
    columns: int


PRODUCTS = (
    Product("qkv", 8192, 1280, 8192),
    Product("output", 8192, 8192, 1024),
    Product("gate_up", 8192, 6400, 8192),
    Product("down", 8192, 8192, 3200),
    Product("head, a chunk", 4096, 16000, 8192),
    Product("qkv at tensor 4", 8192, 2560, 8192),
)
TOY = (Product("gate_up", 64, 50, 64),)


def run(day: Day, findings: Findings) -> None:
    machine = machine_of(day.toy)
    for product in TOY if day.toy else PRODUCTS:
        one_product(product, machine, findings)
    if isinstance(machine, Gpu):
        beside_held(PRODUCTS[2], machine, findings)
        who_begins(PRODUCTS[2], machine, findings)


def tensors_of(product: Product, machine: Machine) -> tuple[torch.Tensor, ...]:
    """x, w, dy in bfloat16, and a gradient in float32."""
    sizes = ((product.tokens, product.columns), (product.rows, product.columns), (product.tokens, product.rows))
    x, w, dy = (torch.randn(size, device=machine.device).to(torch.bfloat16) for size in sizes)
    return x, w * 0.02, dy, torch.randn(product.rows, product.columns, device=machine.device)


def one_product(product: Product, machine: Machine, findings: Findings) -> None:
    """TFLOP/s of the three products of a step, and of a gradient that is not added up; its error and its repetition."""
    x, w, dy, gradient = tensors_of(product, machine)
    flops = 2 * product.tokens * product.rows * product.columns
    before = gradient.clone()
    add_product_(gradient, dy, x)
    again = before.clone()
    add_product_(again, dy, x)
    right = before.double() + dy.double().t() @ x.double()
    far = ((gradient.double() - right).abs().max() / right.abs().max()).item()
    shape = f"{product.tokens} x {product.rows} x {product.columns}"
    findings.say("weight gradient", weight=product.weight, shape=shape, far=far, repeats=torch.equal(gradient, again))
    ways: dict[str, Callable] = {
        "forward": lambda: torch.mm(x, w.t()),
        "input gradient": lambda: torch.mm(dy, w),
        "weight gradient in float32": lambda: add_product_(gradient, dy, x),
        "weight gradient in bfloat16": lambda: torch.mm(dy.t(), x),
    }
    for way, call in ways.items():
        ms = median_ms(machine, call, repeats=15, flushed=True)
        findings.say("rate", weight=product.weight, shape=shape, way=way, ms=ms, tflops=flops / ms / 1e9)


def beside_held(product: Product, machine: Gpu, findings: Findings) -> None:
    """How much longer a product takes while others hold some multiprocessors, as receives do that wait."""
    from gpu.hold import hold  # Triton's interpreter does not know it

    x, w, *_ = tensors_of(product, machine)
    repeats, side = 10, machine.stream()
    free = median_ms(machine, lambda: torch.mm(x, w.t()), repeats)
    hold(1, 0.1, machine.device)  # compiled now, not while it is timed
    for held in HELD:
        machine.synchronize()
        where = torch.empty(0)
        if held:
            with machine.on(side):
                where = hold(held, 20 + 3 * repeats * free, machine.device)
            time.sleep(0.005)  # until it is there
        marks = [machine.mark()]
        for _ in range(repeats):
            torch.mm(x, w.t())
            marks.append(machine.mark())
        machine.synchronize()
        ms = sorted(machine.between_ms(a, b) for a, b in pairwise(marks))[repeats // 2]
        findings.say("beside held multiprocessors", weight=product.weight, blocks=held,
                     multiprocessors=len(set(where.tolist())), ms=ms, slower=ms / free)  # fmt: skip


def who_begins(product: Product, machine: Gpu, findings: Findings) -> None:
    """A copy that is issued before a product, both released by one event, as a collective and the product it is to
    overlap with are: at the usual priority the product may take all multiprocessors first.
    """
    from gpu.hold import hold

    x, w, *_ = tensors_of(product, machine)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=machine.device)
    target = torch.zeros_like(source)
    alone = {
        "copy": median_ms(machine, lambda: target.add_(source), 10),
        "product": median_ms(machine, lambda: torch.mm(x, w.t()), 10),
    }
    for priority in (0, -1):
        done = sorted(
            machine.released_together(
                lambda: target.add_(source), lambda: torch.mm(x, w.t()), priority, lambda: hold(1, 2.0, machine.device)
            )
            for _ in range(9)
        )[4]
        findings.say(
            "released by one event", priority=priority, copy_alone_ms=alone["copy"], copy_done_ms=done[0],
            product_alone_ms=alone["product"], product_done_ms=done[1],
        )  # fmt: skip
