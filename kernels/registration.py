"""Makes a launch function an operation that PyTorch knows.

`@operation(schema, fake)` defines `torch.ops.megatron_lite.NAME`: on a GPU (or, interpreted, on a CPU) it launches; on
meta and fake tensors it makes outputs of the right size; the schema says what it writes into. What stands under the
decorated name is that operation. Defined through a `Library` because `torch.library.custom_op` costs several times as
much on the host for each call.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "megatron_lite"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def operation(schema: str, fake: Callable, flops: Callable | None = None) -> Callable[[Callable], Callable]:
    """`fake` takes the same arguments; `flops` their shapes, as torch's flop counter hands them on."""

    def register(launch: Callable) -> Callable:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, launch, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        packet = getattr(torch.ops.megatron_lite, name)
        if flops is not None:
            register_flop_formula(packet)(flops)
        return packet.default

    return register


def differentiable(forward: Callable, keep: Callable, backward: Callable) -> None:
    """Give an operation its gradient: `keep(ctx, inputs, output)` saves, `backward(ctx, *gradients)` answers."""
    torch.library.register_autograd(forward, backward, setup_context=keep, lib=LIBRARY)
