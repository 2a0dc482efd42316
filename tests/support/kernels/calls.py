"""One small call of every operation."""

from collections.abc import Callable
from typing import Any

import torch
from megatron_lite.kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    embedding,
    entropy,
    rms_norm,
    rope,
    square_norm,
    swiglu,
    weight_gradient,
)
from megatron_lite.kernels.reference.rope import rope_tables
from support.kernels.harness import fresh, random
from torch import Tensor


class Call:
    """An operation and arguments that it takes."""

    def __init__(self, operation: torch._ops.OpOverload, *arguments: Any):
        self.operation, self.arguments = operation, arguments
        self.name = operation._schema.name.removeprefix("megatron_lite::")

    def __str__(self) -> str:
        return self.name

    @property
    def tensors(self) -> dict[str, int]:
        """Places of those arguments that are tensors, by name."""
        names = [argument.name for argument in self.operation._schema.arguments]
        given = enumerate(zip(names, self.arguments, strict=False))  # arguments with defaults may be left out
        return {name: at for at, (name, argument) in given if isinstance(argument, Tensor)}

    @property
    def written(self) -> list[int]:
        """Places of those arguments that are written into."""
        infos = [argument.alias_info for argument in self.operation._schema.arguments]
        return [at for at, info in enumerate(infos) if info is not None and info.is_write]

    def changed(self, label: str, change: Callable[[Tensor], Tensor]) -> "Call":
        """The call with another tensor in the place of one."""
        at = self.tensors[label]
        return Call(self.operation, *self.arguments[:at], change(self.arguments[at]), *self.arguments[at + 1 :])


def calls() -> list[Call]:
    return [*_rows(), *_attention(), *_losses(), *_model(), *_updates()]


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return random(shape, torch.float32, fresh(seed))


def _rows() -> list[Call]:
    x, other, dy, dtotal = (_numbers(3, 10, seed=seed) for seed in range(4))
    weight, scales = _numbers(10), _numbers(3).abs()
    return [
        Call(rms_norm.rms_norm, x, weight, 1e-5),
        Call(rms_norm.add_rms_norm, x, other, weight, 1e-5),
        Call(rms_norm.rms_norm_backward, dy, dtotal, x, weight, scales),
        Call(rms_norm.add_partials_, weight, dy),
        Call(swiglu.swiglu, x),
        Call(swiglu.swiglu_backward, dy[:, :5], x),
    ]


def _attention() -> list[Call]:
    """Queries that see the keys up to their own, as ranges."""
    q, output, gradient, dq = (_numbers(1, 4, 5, 8, seed=seed) for seed in range(4))
    k, v, dk, dv = (_numbers(1, 2, 5, 8, seed=seed) for seed in range(4, 8))
    first, last = torch.zeros(1, 5, dtype=torch.int32), torch.arange(1, 6, dtype=torch.int32).unsqueeze(0)
    backward = gradient, q, k, v, output, _numbers(1, 4, 5), False, first, last, last - 1, first + 5
    return [
        Call(attention._attention, q, k, v, False, first, last),
        Call(attention_backward._backward, *backward),
        Call(attention_backward._backward_into, *backward, dq, dk, dv),
    ]


def _losses() -> list[Call]:
    logits, number = _numbers(3, 40), torch.ones(3)
    target = torch.tensor([3, -1, 37])
    return [
        Call(cross_entropy.cross_entropy_statistics, logits, target, 38),
        Call(cross_entropy.cross_entropy_gradient_, logits, target, 38, number, number, number),
        Call(entropy.entropy_statistics, logits, target, 38),
        Call(entropy.entropy_gradient_, logits, target, 38, number, number, number, number, number),
    ]


def _model() -> list[Call]:
    positions = torch.arange(4, dtype=torch.int32).view(2, 2)
    tables = rope_tables(4, 6, 100.0, torch.float32, "cpu")
    return [
        Call(rope.rope_, _numbers(2, 2, 4 * 6), *tables, positions, 2, 6, False),
        Call(embedding.embedding_backward_, _numbers(7, 10), torch.tensor([1, 1, 9]), _numbers(3, 10)),
        Call(weight_gradient.add_product_, _numbers(6, 4), _numbers(5, 6), _numbers(5, 4)),
    ]


def _updates() -> list[Call]:
    master, gradient, first, second = (_numbers(40, seed=seed) for seed in range(4))
    shards = [master, gradient]
    numbers = 10, 1, 3e-3, [0.9, 0.95], 1e-8, 0.1
    return [
        Call(adamw.adamw_, master, gradient, first, second.abs(), master.bfloat16(), torch.tensor(0.5), *numbers),
        Call(square_norm.square_norm, shards, torch.tensor([[s.data_ptr(), s.numel()] for s in shards])),
    ]
