"""An operation at the sizes at which it is compiled, counted and timed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron_lite.kernels.benchmarks.machine_code import Loops
from megatron_lite.kernels.benchmarks.specimen import USUAL, Specimen, recording
from megatron_lite.kernels.costs import Cost
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Makes an operation's tensors: filled on a device that computes, else only as large as they are to be."""

    device: str = "cpu"
    filled: bool = False

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        # What nobody touches takes no memory.
        result = torch.empty(shape, dtype=dtype, device=self.device)
        return result.normal_() if self.filled else result

    def integers(self, below: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        if not self.filled:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return torch.randint(below, shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Kernel:
    """What has to be known of a kernel beyond its launch; see Specimen. `loops` are given the launch's arguments."""

    elements: float
    loops: Callable[[Mapping[str, Any]], Loops] = lambda arguments: {}
    single: tuple[str, ...] = ()
    products: bool = False
    waived: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A call of ours, the reference's, their arguments, and the kernels it launches by the names of their functions.

    `by_products`: a GPU's products of matrices bound it, not its memory.
    """

    name: str
    call: Callable
    reference: Callable
    inputs: Callable[[Memory], tuple]
    cost: Cost
    kernels: Mapping[str, Kernel]
    by_products: bool = False


def specimens_of(operations: Iterable[Operation], targets: Iterable[str] = USUAL) -> list[Specimen]:
    """Each kernel's first launch, on each target. An operation of several kernels names them behind its own name."""
    found = []
    for operation in operations:
        inputs = operation.inputs(Memory())
        for target in targets if operation.kernels else ():
            with recording(target) as launches:
                operation.call(*inputs)
            first = {one.kernel.__name__: one for one in reversed(launches)}
            if first.keys() != operation.kernels.keys():
                raise ValueError(f"{operation.name} launches {list(first)}, known are {list(operation.kernels)}")
            for function, kernel in operation.kernels.items():
                name = operation.name if len(first) == 1 else f"{operation.name}: {function}"
                found.append(
                    Specimen(name, target, first[function], kernel.elements, kernel.loops(first[function].arguments),
                             kernel.single, kernel.products, kernel.waived)
                )  # fmt: skip
    return found
