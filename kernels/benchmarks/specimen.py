"""A kernel as one launch starts it on one target: all that has to be known to compile it and to count what it does."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

from megatron_lite.kernels import launch
from megatron_lite.kernels.benchmarks.machine_code import Loops
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

DEVICES = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
USUAL = ("sm_80", "sm_90", "sm_100", "gfx942")  # sm_89's tables are sm_80's where its smaller shared memory is enough


@dataclass(frozen=True)
class Launched:
    """`arguments` by name; a tensor is its type: "*bf16". `options` are what it is compiled with."""

    kernel: JITFunction
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    programs: int


@dataclass(frozen=True)
class Specimen:
    """A launch that works on so many `elements` in all.

    `single` names the pointers, or what is computed of them, of which a thread needs one element at a time: only those
    may be read or written in less than 128 bits. `products` says whether it multiplies matrices, for which it has to
    use tensor cores. `waived` has facts ("FACT", "FACT on TARGET") that may break the gate's rules, and why.
    """

    name: str
    target: str
    launched: Launched
    elements: float
    loops: Loops = field(default_factory=dict)
    single: tuple[str, ...] = ()
    products: bool = False
    waived: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def recording(target: str) -> Iterator[list[Launched]]:
    """Note the launches inside instead of starting them, as they would be on a target: nothing is computed."""
    noted: list[Launched] = []
    run, chosen = JITFunction.run, launch.target_of

    def note(kernel, *given, grid, warmup, **named):
        values = dict(zip(kernel.arg_names, given, strict=False)) | named
        arguments = {name: _described(values.pop(name)) for name in kernel.arg_names}
        noted.append(Launched(kernel, arguments, values, prod(grid)))

    JITFunction.run = note
    launch.target_of = lambda device: target  # type: ignore[assignment]  # a cached function is put back below
    try:
        yield noted
    finally:
        JITFunction.run, launch.target_of = run, chosen


TYPES = {"bfloat16": "bf16", "float32": "fp32", "int32": "i32", "int64": "i64"}


def _described(value):
    if not isinstance(value, Tensor):
        return value
    return "*" + TYPES[str(value.dtype).removeprefix("torch.")]


def specialized(launched: Launched, device: GPUTarget) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) as Triton's JIT makes them of a launch whose tensors are aligned.

    A pointer and an integer that 16 divides are marked so, without which nothing is loaded in vectors; an integer equal
    to 1 becomes a constant; on AMD tensors below 2 GB may be addressed by 32 bits.
    """
    signature, constants, attributes = {}, {}, {}

    def specialize(value, place: tuple[int, ...], free: bool):
        if isinstance(value, tuple):
            return tuple(specialize(item, (*place, index), free) for index, item in enumerate(value))
        if value is None or (free and type(value) is int and value == 1):
            constants[place] = value
            return "constexpr"
        if isinstance(value, str) or (free and type(value) is int and value % 16 == 0):
            attributes[place] = [["tt.divisibility", 16]]
        if isinstance(value, str) and device.backend == "hip":
            attributes[place].append(["tt.pointer_range", 32])
        return _type(value)

    for index, parameter in enumerate(launched.kernel.params):
        value = launched.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        else:
            signature[parameter.name] = specialize(value, (index,), not parameter.do_not_specialize)
    return signature, constants, attributes


def distinct(specimens: Iterable[Specimen]) -> list[Specimen]:
    """The first of all that are compiled alike: those have one machine code."""
    found: dict[str, Specimen] = {}
    for one in specimens:
        compiled_from = specialized(one.launched, DEVICES[one.target])
        found.setdefault(f"{one.target} {one.launched.kernel} {compiled_from} {one.launched.options}", one)
    return list(found.values())


def _type(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
