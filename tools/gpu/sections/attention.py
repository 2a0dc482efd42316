"""Attention beside PyTorch's own on this GPU, and ours with other tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron_lite.kernels import attention as ours
from megatron_lite.kernels.interpreter import interpreting, make_exact
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu.day import Day
from gpu.findings import Findings, describe
from gpu.machine import Machine, machine_of, median_ms
from gpu.tiles import FORWARD, with_tiles


@dataclass(frozen=True)
class Shape:
    """Heads of a rank, causal, one sequence."""

    heads: int
    groups: int
    head_dim: int
    length: int = 8192

    @property
    def flops(self) -> tuple[float, float]:
        """Forward, two products over the half of the scores that is seen, and backward, five."""
        product = 2 * self.heads * self.length * (self.length + 1) / 2 * self.head_dim
        return 2 * product, 5 * product


SHAPES = (Shape(8, 1, 128), Shape(16, 2, 128), Shape(32, 8, 128), Shape(32, 8, 64))
TOY = (Shape(4, 2, 16, 64),)
# (rows, step, warps, stages); those of the launch table among them.
TILES = {
    "forward": [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3), (128, 64, 4, 3),
                (64, 128, 4, 3)],
    "dq": [(128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 128, 4, 2), (128, 128, 8, 2), (64, 64, 8, 2)],
    "dkv": [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 2), (64, 64, 4, 2), (64, 128, 4, 2), (64, 64, 8, 2)],
}  # fmt: skip
TOY_TILES = {"forward": [(32, 32, 4, 2)], "dq": [(32, 32, 4, 2)], "dkv": [(32, 32, 4, 2)]}


def run(day: Day, findings: Findings) -> None:
    if interpreting():
        make_exact()
    machine, shapes = machine_of(day.toy), TOY if day.toy else SHAPES
    for shape in shapes:
        beside_torch(shape, machine, findings, repeats=1 if day.toy else 15)
    for kernel, candidates in (TOY_TILES if day.toy else TILES).items():
        for tiles in candidates:
            one_tile(kernel, tiles, shapes[0], machine, findings, repeats=1 if day.toy else 8)


class Tensors:
    """Of one call, as the model lays them out: packed queries, keys and values [T, 1, G, R + 2, D]."""

    def __init__(self, shape: Shape, machine: Machine):
        def random(*size: int) -> Tensor:
            return torch.randn(size, device=machine.device).to(torch.bfloat16)

        packed = random(shape.length, 1, shape.groups, shape.heads // shape.groups + 2, shape.head_dim)
        self.q, self.k, self.v = ours.split_packed(packed)
        self.gradient = random(shape.length, 1, shape.heads, shape.head_dim).permute(1, 2, 0, 3)
        self.into = ours.split_packed(torch.empty_like(packed))
        self.output, self.log_sum = self.forward()

    def forward(self) -> tuple[Tensor, Tensor]:
        return ours.attention(self.q, self.k, self.v, True, None)

    def backward(self) -> None:
        ours.attention_backward_(
            self.gradient, self.q, self.k, self.v, self.output, self.log_sum, True, None, *self.into
        )


def beside_torch(shape: Shape, machine: Machine, findings: Findings, repeats: int) -> None:
    tensors = Tensors(shape, machine)
    about = {"heads": shape.heads, "groups": shape.groups, "head_dim": shape.head_dim}

    def say(by: str, forward: Callable, backward: Callable, **more) -> None:
        ms = [median_ms(machine, call, repeats, flushed=True) for call in (forward, backward)]
        rates = [flops / one / 1e9 for flops, one in zip(shape.flops, ms, strict=True)]
        findings.say("beside PyTorch", by=by, **about, forward_ms=ms[0], backward_ms=ms[1], forward_tflops=rates[0],
                     backward_tflops=rates[1], **more)  # fmt: skip

    say("ours", tensors.forward, tensors.backward)
    q, k, v = (x.flatten(1, 2) if x.dim() == 5 else x for x in (tensors.q, tensors.k, tensors.v))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        for spread in (False, True):  # groups as they are; where the backend has none, a key-value head for each query
            keys, values = (x.repeat_interleave(shape.heads // shape.groups, 1) if spread else x for x in (k, v))
            given = [x.contiguous().requires_grad_() for x in (q, keys, values)]
            try:
                with sdpa_kernel(backend):
                    say(backend.name, *_torch_calls(given, tensors.gradient), spread=spread,
                        differs=_differs(given, tensors.output))  # fmt: skip
                break
            except RuntimeError as problem:
                findings.say("not to be had", by=backend.name, **about, spread=spread, why=describe(problem))


def _torch_calls(given: list[Tensor], gradient: Tensor) -> tuple[Callable, Callable]:
    def forward() -> Tensor:
        return scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)

    result = forward()
    return forward, lambda: torch.autograd.grad(result, given, gradient, retain_graph=True)


def _differs(given: list[Tensor], output: Tensor) -> float:
    theirs = scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
    return (theirs - output).abs().max().item()


def one_tile(kernel: str, tiles: tuple, shape: Shape, machine: Machine, findings: Findings, repeats: int) -> None:
    """Forward's rate, or the milliseconds of both backward kernels with other tiles for one of them."""
    try:
        with with_tiles(kernel, shape.head_dim, machine.device, tiles):
            tensors = Tensors(shape, machine)
            call = tensors.forward if kernel in FORWARD else tensors.backward
            ms = median_ms(machine, call, repeats, flushed=True)
        forward, backward = shape.flops
        flops = forward if kernel in FORWARD else backward
        findings.say("tiles", kernel=kernel, tiles=tiles, ms=ms, tflops=flops / ms / 1e9)
    except Exception as problem:  # what does not compile is an answer too
        findings.say("tiles", kernel=kernel, tiles=tiles, cannot=describe(problem))
