"""Makes a launch function an operation that PyTorch knows.

`@operation(schema, fake)` defines `torch.ops.megatron_lite.NAME`: on a GPU (or, interpreted, on a CPU) it launches; on
meta and fake tensors it makes outputs of the right size; the schema says what it writes into. What stands under the
decorated name is that operation. Defined through a `Library` because `torch.library.custom_op` costs several times as
much on the host for each call.
"""

from collections.abc import Callable, Iterator

import torch
from megatron_lite.kernels.checks import check
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "megatron_lite"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def operation(schema: str, fake: Callable, flops: Callable | None = None) -> Callable[[Callable], OpOverload]:
    """`fake` takes the same arguments; `flops` their shapes, as torch's flop counter hands them on."""

    def register(launch: Callable) -> OpOverload:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, launch, key)
        packet = getattr(torch.ops.megatron_lite, name)
        torch.library.register_fake(f"{NAMESPACE}::{name}", _on_one_device(packet.default._schema, fake), lib=LIBRARY)
        if flops is not None:
            register_flop_formula(packet)(flops)
        return packet.default

    return register


def _on_one_device(schema: torch.FunctionSchema, fake: Callable) -> Callable:
    """The fake form, with a ValueError for tensors on several devices.

    Where one tensor is on meta, torch takes this form whatever the others are, and would hand out unfilled memory.
    """
    name = schema.name.removeprefix(f"{NAMESPACE}::")
    labels = [argument.name for argument in schema.arguments]

    def checked(*given, **named):
        tensors = list(_tensors([*zip(labels, given, strict=False), *named.items()]))
        for label, tensor in tensors:
            check(name, label, tensor, tensors[0][1])
        return fake(*given, **named)

    return checked


def _tensors(arguments: list[tuple[str, object]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among named arguments, also those in lists."""
    for name, value in arguments:
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Tensor):
                yield name, item


def differentiable(forward: OpOverload, keep: Callable, backward: Callable) -> None:
    """Give an operation its gradient: `keep(ctx, inputs, output)` saves, `backward(ctx, *gradients)` answers."""
    torch.library.register_autograd(forward, backward, setup_context=keep, lib=LIBRARY)
