"""Compiles a specimen for a GPU that need not be there, and reads off the machine code what it costs.

Nothing here is a time. Registers, spills and instructions are facts of the compiled kernel; that fewer are faster is
not.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from megatron_lite.kernels.benchmarks.machine_code import (
    Code,
    Instruction,
    line_at,
    loops_of,
    read_amd,
    read_nvidia,
    runs_of,
    waits_for_each_product,
)
from megatron_lite.kernels.benchmarks.specimen import DEVICES, Specimen, specialized
from megatron_lite.kernels.interpreter import interpreting
from triton.compiler import ASTSource, CompiledKernel

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Held:
    """What a block holds of a multiprocessor while it runs."""

    registers: int
    spills: int
    shared: int
    occupancy: int


@dataclass(frozen=True)
class Facts(Held):
    """What one kernel is on one target.

    spills        registers kept in memory: instructions that load or store them (NVIDIA), or registers (AMD)
    shared        bytes of shared memory
    occupancy     share of the warps a multiprocessor can hold, as registers, shared memory and block size allow, in %
    wide          global loads and stores of 128 bits and more
    narrow        all others
    narrow_at     source lines of those narrow ones that the specimen does not allow
    tensor_core   instructions that multiply matrices
    serialized    loops in which each of these waits for the one before
    fp64          instructions in double precision
    instructions  in the machine code, each once
    per_element   instructions that run, times threads, for each element
    """

    wide: int
    narrow: int
    narrow_at: tuple[str, ...]
    tensor_core: int
    serialized: int
    fp64: int
    instructions: int
    per_element: float


@dataclass(frozen=True)
class Machine:
    """How to read the machine code of a vendor: patterns of instruction names."""

    read: Callable[[str], Code]
    memory: str  # global loads and stores
    tensor_core: str
    fp64: str
    sizes: tuple[tuple[str, int], ...]  # bytes a thread moves by what an instruction's name contains


NVIDIA = Machine(
    read_nvidia,
    memory=r"(LDG|STG|LDGSTS|UTMALDG|UTMASTG)\b",
    tensor_core=r"HMMA|HGMMA|UTC\w*MMA",
    fp64=r"D(ADD|MUL|FMA|SETP|MNMX|MMA)|\w+\.(\w+\.)*F64|MUFU\.\w+64H",
    sizes=((".256", 32), (".128", 16), (".64", 8), (".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2), ("UTMA", 16)),
)
AMD = Machine(
    read_amd,
    memory=r"(buffer|global|flat)_(load|store)",
    tensor_core=r"v_s?mfmac?_",
    fp64=r"v_\w+_f64",
    sizes=(("dwordx4", 16), ("dwordx3", 12), ("dwordx2", 8), ("short", 2), ("byte", 1)),
)


def compiled(specimen: Specimen) -> Facts:
    """Raises RuntimeError where TRITON_INTERPRET had kernels defined as functions of Python."""
    if interpreting():
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    device, launched = DEVICES[specimen.target], specimen.launched
    signature, constants, attributes = specialized(launched, device)
    source = ASTSource(launched.kernel, signature, constants, attributes)
    with triton.knobs.compilation.scope():
        # A cached kernel's lines may be another checkout's: Triton's key leaves the file's path out.
        triton.knobs.compilation.always_compile = True
        kernel = triton.compile(source, target=device, options=dict(launched.options))
    threads = launched.options["num_warps"] * device.warp_size
    if device.backend == "cuda":
        return _nvidia(specimen, kernel, device.arch, threads)
    return _amd(specimen, kernel, threads)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's tools do not say {pattern}")
    return int(found[1])


def _nvidia(specimen: Specimen, kernel: CompiledKernel, capability: int, threads: int) -> Facts:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = read_nvidia(_tool("nvdisasm", "-c", "-gi", file.name))
    registers, shared = _number(r"REG:(\d+)", usage), kernel.metadata.shared
    held = Held(registers, _count(code, r"LDL|STL"), shared,
                nvidia_occupancy(capability, registers, shared, threads // 32))  # fmt: skip
    return _facts(specimen, NVIDIA, code, threads, held)


def _amd(specimen: Specimen, kernel: CompiledKernel, threads: int) -> Facts:
    text = kernel.asm["amdgcn"]
    number = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+): +(\d+)$", text, re.MULTILINE)}
    # A quarter of a multiprocessor holds at most 8 waves.
    waves = _number(r"; Occupancy: (\d+)", text)
    # Scalar registers spill into lanes of vector registers, those into the matrix units' accumulators while there are
    # some: no memory is set aside then.
    spills = number["vgpr_spill_count"] if number["private_segment_fixed_size"] else 0
    held = Held(number["vgpr_count"], spills, kernel.metadata.shared, waves * 100 // 8)
    return _facts(specimen, AMD, read_amd(text), threads, held)


def _facts(specimen: Specimen, machine: Machine, code: Code, threads: int, held: Held) -> Facts:
    moved = {
        index: _bytes(machine, instruction)
        for index, instruction in enumerate(code)
        if re.match(machine.memory, instruction.name)
    }
    narrow = [code.instructions[index] for index, size in moved.items() if size < 16]
    wide = {index: size * threads for index, size in moved.items() if size >= 16}
    runs = sum(runs_of(code, specimen.loops, wide))
    return Facts(
        **asdict(held),
        wide=len(wide),
        narrow=len(narrow),
        narrow_at=tuple(sorted({_where(one) for one in narrow if not _single(specimen, one)})),
        tensor_core=_count(code, machine.tensor_core),
        serialized=sum(waits_for_each_product(code, loop) for loop in loops_of(code)),
        fp64=_count(code, machine.fp64),
        instructions=len(code),
        per_element=round(runs * threads * specimen.launched.programs / specimen.elements, 4),
    )


# What a multiprocessor of each generation has: bytes of shared memory, warps, blocks. All have 65,536 registers.
HOLDS = {80: (164 * 1024, 64, 32), 89: (100 * 1024, 48, 24), 90: (228 * 1024, 64, 32), 100: (228 * 1024, 64, 32)}


def nvidia_occupancy(capability: int, registers: int, shared: int, warps: int) -> int:
    """Per cent of the warps, as NVIDIA's occupancy calculator counts: registers are given out by 256 to a warp, and
    each block takes 1 KB of shared memory for itself. 0 is a kernel that does not start.
    """
    memory, most, blocks = HOLDS[capability]
    each = -(-registers * 32 // 256) * 256
    blocks = min(65536 // each // warps, blocks, most // warps, memory // (shared + 1024))
    return blocks * warps * 100 // most


def _bytes(machine: Machine, instruction: Instruction) -> int:
    """What one thread moves by a load or store."""
    return next((size for part, size in machine.sizes if part in instruction.name), 4)


def _single(specimen: Specimen, instruction: Instruction) -> bool:
    """Whether a source line of the instruction names a pointer that the specimen lets go in small pieces.

    NVIDIA's assembler knows loads of single values by the line after theirs. It tells two lines apart by their numbers
    alone: where lines of two files share one, the later instruction is known by the earlier's file.
    """
    lines = " ".join(line_at((file, number - before)) for file, number in instruction.places for before in (0, 1))
    return any(re.search(rf"\b{re.escape(name)}\b", lines) for name in specimen.single)


def _where(instruction: Instruction) -> str:
    if not instruction.places:
        return instruction.name
    file, number = instruction.places[0]
    return f"{instruction.name} at {Path(file).name}:{number}: {line_at((file, number)).strip()}"


def _count(code: Code, pattern: str) -> int:
    return sum(re.match(pattern, instruction.name) is not None for instruction in code)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
