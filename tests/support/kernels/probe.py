"""Small kernels whose machine code is known beforehand, and bad ones: their facts and faults as JSON on stdout.

Run without TRITON_INTERPRET, as a process of its own.
"""

import json
import sys
from dataclasses import asdict, replace

import triton
import triton.language as tl
from megatron_lite.kernels import rms_norm
from megatron_lite.kernels.benchmarks import gate, ours, timing
from megatron_lite.kernels.benchmarks.compiled import compiled
from megatron_lite.kernels.benchmarks.machine_code import Loop
from megatron_lite.kernels.benchmarks.operation import Kernel, Memory, Operation, specimens_of
from megatron_lite.kernels.benchmarks.specimen import DEVICES, Launched, Specimen, distinct, recording, specialized
from megatron_lite.kernels.costs import Cost
from megatron_lite.kernels.launch import Launch

BLOCK, WARPS = 1024, {"sm_90": 8, "gfx942": 4}  # one vector of float32 a thread


@triton.jit
def straight(x, y, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + place) * 2)


@triton.jit
def repeat(x, y, turns, BLOCK: tl.constexpr):
    # Threads meet in every turn, which no compiler unrolls.
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(turns):
        value = tl.load(x + turn * BLOCK + place)
        total += value * tl.sum(value, 0)
    tl.store(y + place, total)


@triton.jit
def unrolled(x, y, turns, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in tl.range(turns, loop_unroll_factor=8):  # by Triton; whether LLVM does it too is its own choice
        total += tl.load(x + turn * BLOCK + place)
    tl.store(y + place, total)


@triton.jit
def fixed(x, y, TURNS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(TURNS):
        total += tl.load(x + turn * BLOCK + place)
    tl.store(y + place, total)


@triton.jit
def sum_of(x, turns, total, place, BLOCK: tl.constexpr):
    for turn in range(turns):
        value = tl.load(x + turn * BLOCK + place)
        total += value * tl.sum(value, 0)
    return total


@triton.jit
def nested(x, y, outer, inner, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(outer):
        total = sum_of(x + row * BLOCK, inner, total, place, BLOCK)
        total = sum_of(x, outer, total * 2, place, BLOCK)
    tl.store(y + place, total)


@triton.jit
def in_float64(x, y, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y + place, (tl.load(x + place).to(tl.float64) * 1.1).to(tl.float32))


@triton.jit
def shifted(x, y, shift, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y + place, tl.load(x + shift + place))


def specimen(kernel, target="sm_90", elements=BLOCK, name=None, options=None, loops=None, products=False, **arguments):
    tensors = {"x": "*fp32", "y": "*fp32", "BLOCK": BLOCK}
    launched = Launched(kernel, tensors | arguments, Launch(WARPS[target]).options | (options or {}), 1)
    return Specimen(name or kernel.__name__, target, launched, elements, loops or {}, products=products)


def counted() -> dict[str, float]:
    """Instructions that a thread runs."""
    found = {}
    for target, warps in WARPS.items():
        threads = warps * (32 if target == "sm_90" else 64)

        def count(kernel, loops=None, **arguments):
            one = specimen(kernel, target, loops=loops, elements=threads, **arguments)  # noqa: B023
            return compiled(one).per_element

        for turns in (1, 2, 10):
            found[f"{target} repeat {turns}"] = count(repeat, {"turn": Loop(turns)}, turns=8)
        loop = Loop(64, bytes=BLOCK * 4)
        found[f"{target} unrolled"] = count(unrolled, {"turn": loop}, turns=64)
        found[f"{target} taken for one turn"] = count(unrolled, {"turn": Loop(64)}, turns=64)
        for turns in (4, 8):
            found[f"{target} fixed {turns}"] = count(fixed, {"turn": Loop(turns)}, TURNS=turns)
        for outer in (1, 2):
            for inner in (2, 3, 5):
                loops = {"row": Loop(outer), "turn": (Loop(inner), Loop(outer))}
                found[f"{target} nested {outer} {inner}"] = count(nested, loops, outer=8, inner=8)
        found[f"{target} straight"] = count(straight)
        found[f"{target} straight, static"] = compiled(specimen(straight, target)).instructions
    return found


def bad() -> list[Specimen]:
    return [
        specimen(straight, name="good"),
        specimen(repeat, name="spilling", BLOCK=16_384, turns=8, options={"maxnreg": 32}, loops={"turn": Loop(8)}),
        specimen(in_float64, name="double"),
        specimen(shifted, name="unaligned", shift=3),
        specimen(straight, name="without tensor cores", products=True),
    ]


def small(memory: Memory):
    return memory.normal(4, 64), memory.normal(64), 1e-5


def recorded() -> dict:
    """What is noted of RMSNorm's launch on each target, and the error where its kernel is not the one described."""
    operation = Operation("norm", rms_norm.rms_norm, None, small, Cost(0, 0), {"forward_kernel": Kernel(256)})
    launches = {one.target: one.launched for one in specimens_of([operation])}
    try:
        specimens_of([replace(operation, kernels={"other": Kernel(1)})])
    except ValueError as error:
        wrong = str(error)
    return {
        "options": {target: dict(launched.options) for target, launched in launches.items()},
        "programs": launches["sm_90"].programs,
        "x": launches["sm_90"].arguments["x"],
        "COLUMNS": launches["sm_90"].arguments["COLUMNS"],
        "error": wrong,
    }


@triton.jit
def takes_all(x, sixteen, three, one, scale, strides, absent, BLOCK: tl.constexpr):
    pass


def special() -> dict:
    """Keys as text."""
    arguments = {"x": "*bf16", "sixteen": 32, "three": 3, "one": 1, "scale": 0.5, "strides": (48, 1, 5),
                 "absent": None, "BLOCK": 64}  # fmt: skip
    found = {}
    for target in ("sm_90", "gfx942"):
        signature, constants, attributes = specialized(Launched(takes_all, arguments, {}, 1), DEVICES[target])
        found[target] = {"signature": signature, "constants": {str(key): value for key, value in constants.items()},
                         "attributes": {str(key): value for key, value in attributes.items()}}  # fmt: skip
    return found


def alike() -> list[str]:
    """Names of what is left of specimens that differ, one after another, from the first."""
    first = specimen(shifted, name="a", shift=3)
    others = [
        replace(first, name="b", elements=7),
        specimen(shifted, name="c", shift=5),
        specimen(shifted, name="d", shift=32),
        specimen(shifted, name="e", shift=3, options={"num_warps": 4}),
        replace(first, name="f", target="sm_80"),
    ]
    return [one.name for one in distinct([first, *others])]


def rivals() -> list[str]:
    """Operations whose arguments Liger's launchers take, where it is installed."""
    found = []
    for operation in ours.operations():
        rival = timing.liger().get(operation.name)
        if rival is not None:
            with recording("sm_90") as launches:
                rival(*operation.inputs(Memory()))
            found += [operation.name] * (len(launches) == 1)
    return found


def undeclared() -> str:
    try:
        compiled(specimen(repeat, turns=8))
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    facts = {one.name: (one, compiled(one)) for one in bad()}
    json.dump(
        {
            "counted": counted(),
            "faults": {name: list(map(str, gate.forbidden(*pair))) for name, pair in facts.items()},
            "facts": {name: asdict(pair[1]) for name, pair in facts.items()},
            "undeclared": undeclared(),
            "recorded": recorded(),
            "special": special(),
            "distinct": alike(),
            "rivals": rivals(),
        },
        sys.stdout,
    )
