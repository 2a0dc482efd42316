"""Machine code as instructions with their source lines, and how often each of them runs.

Two assemblers are read: what nvdisasm prints for NVIDIA (`-c -gi`), and LLVM's text for AMD. Loops are found in the
control flow and known by the `for` that their instructions were compiled from.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

Place = tuple[str, int]  # file, line
Source = tuple[Place, ...]  # a place, then where it was inlined, and so on outwards


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    places: Source


@dataclass
class Code:
    """A kernel's instructions in order, and the index of the instruction after each label."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True)
class MachineLoop:
    """Indices of the instructions that repeat; `branch` is the one that goes back."""

    body: frozenset[int]
    branch: int


def read_nvidia(text: str) -> Code:
    """What `nvdisasm -c -gi` says of a file with one kernel, without the padding: NOP, and a jump to itself."""
    code, fresh = Code(), False
    places: Source = ()
    for line in text.splitlines():
        if match := re.match(r"(\.L_x_\d+):", line):
            code.labels[match[1]] = len(code)
        elif "//## File" in line:
            here = tuple((file, int(number)) for file, number in re.findall(r'"([^"]+)", line (\d+)', line))
            # One line an inlining, each beginning where the one before it ended.
            places, fresh = places + here[1:] if fresh and places[-1:] == here[:1] else here, True
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?([A-Z][\w.]*).*?)\s*;", line):
            fresh = False
            padding = match[2] == "NOP" or any(
                label in match[1] for label, at in code.labels.items() if at == len(code)
            )
            if not padding:
                code.instructions.append(Instruction(match[2], match[1], places))
    return code


def read_amd(text: str) -> Code:
    """LLVM's assembly of one kernel."""
    files = {name: str(Path(folder, name)) for folder, name in re.findall(r'\.file\s+\d+ "([^"]*)" "([^"]*)"', text)}
    code = Code()
    places: Source = ()
    for line in text.splitlines():
        if match := re.match(r"(\.LBB\d+_\d+):", line):
            code.labels[match[1]] = len(code)
        elif match := re.match(r"\s+\.loc\s.*;\s*(.*)", line):
            found = re.findall(r"([^\s:@\[]+):(\d+):\d+", match[1])
            # Line 0 is the compiler's own: what it added belongs to no source line.
            places = tuple((files.get(name, name), int(number)) for name, number in found if number != "0")
        elif match := re.match(r"\s+([sv]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)(.*)", line):
            code.instructions.append(Instruction(match[1], match[1] + match[2].split(";")[0].rstrip(), places))
    return code


def loops_of(code: Code) -> list[MachineLoop]:
    """Natural loops, outer ones and inner ones alike (Aho, Lam, Sethi and Ullman 2006, section 9.6.6).

    A way back to a head makes a loop if the head lies on every way from the entry: code moved behind the end of the
    kernel also jumps back, once.
    """
    before: list[list[int]] = [[] for _ in code]
    for index in reached(code):
        for target in _following(code, index):
            before[target].append(index)
    found: dict[int, MachineLoop] = {}
    for head, sources in enumerate(before):
        for branch in sources if len(sources) > 1 else []:
            body = _natural_loop(before, head, branch)
            if body is not None and not _only_waits(code, body):
                # Branches back to one place are one loop.
                found[head] = MachineLoop(body | (found[head].body if head in found else frozenset()), branch)
    return list(found.values())


def _only_waits(code: Code, body: frozenset[int]) -> bool:
    """Asking a barrier, or for room in the tensor cores' memory, until it is there: counted as asked once."""
    names = " ".join(code.instructions[index].name for index in body)
    return len(body) < 12 and re.search(r"TRYWAIT|NANOSLEEP", names) is not None


def _natural_loop(before: list[list[int]], head: int, branch: int) -> frozenset[int] | None:
    """What reaches the branch without passing the head; None where the entry is among it."""
    body, waiting = {head}, [branch]
    while waiting:
        index = waiting.pop()
        if index not in body:
            if index == 0:
                return None
            body.add(index)
            waiting.extend(before[index])
    return frozenset(body)


def waits_for_each_product(code: Code, loop: MachineLoop) -> bool:
    """Whether Hopper's products of matrices are serialized in a loop: more than half as many waits as products.

    ptxas does so where anything else writes an accumulator while products are under way, and says C7515.
    """
    names = [code.instructions[index].name for index in loop.body]
    products, waits = (sum(name.startswith(kind) for name in names) for kind in ("HGMMA", "WARPGROUP.DEPBAR"))
    return waits > products / 2


def reached(code: Code) -> set[int]:
    """What the entry leads to. Subroutines are not among it: the slow ways of quotient and root for rare operands."""
    found, waiting = set(), [0]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(_following(code, index))
    return found


def _following(code: Code, index: int) -> list[int]:
    """Where control can go after an instruction."""
    instruction = code.instructions[index]
    after = [index + 1] if index + 1 < len(code) else []
    name, text = instruction.name, instruction.text
    if name.startswith(("EXIT", "RET", "s_endpgm")):
        return after if text.startswith("@") else []
    if not name.startswith(("BRA", "s_branch", "s_cbranch")):
        return after
    target = next((code.labels[label] for label in re.findall(r"\.L\w+", text) if label in code.labels), None)
    # A condition is a predicate before the instruction or an operand before the label.
    conditional = text.startswith("@") or "," in text or name.startswith("s_cbranch")
    return ([] if target is None or target >= len(code) else [target]) + (after if conditional else [])


@dataclass(frozen=True)
class Loop:
    """A `for` of the source. How many turns it takes, and how many bytes a program moves in one of them.

    Bytes are those of vector loads and stores; 0 where there are none, or where the compiler cannot unroll.
    """

    turns: float
    bytes: int = 0


# By how the loop begins after `for`: its variable, or more where that is not enough. Where several loops begin alike,
# or one is inlined in several places, a tuple of all, in order.
Loops = Mapping[str, Loop | tuple[Loop, ...]]


def runs_of(code: Code, loops: Loops, bytes_of: Mapping[int, int]) -> list[float]:
    """How often each instruction runs. `bytes_of` has the bytes that a program moves by an instruction, by its index.

    Compilers unroll loops. A machine loop that moves n times the bytes of one turn holds n turns and passes n times
    less often. What is left of the turns (at most n - 1), and both sides of every branch, count as run once. A loop
    that was unrolled altogether is no loop any more. Subroutines count as not run.

    Raises ValueError for a loop that `loops` does not have.
    """
    ways = reached(code)
    runs = [1.0 if index in ways else 0.0 for index in range(len(code))]
    compiled_from: dict[Source, list[Moving]] = {}
    for source, own, machine_loop in _with_sources(code):
        compiled_from.setdefault(source, []).append((sum(bytes_of.get(index, 0) for index in own), machine_loop))
    for several, loop in _declared(loops, compiled_from):
        moved, main = max(several, key=lambda pair: pair[0])
        held = max(1, round(moved / loop.bytes)) if loop.bytes else 1
        for index in main.body:
            runs[index] *= loop.turns / held
    return runs


Moving = tuple[int, MachineLoop]  # a loop with the bytes that it moves itself


def _with_sources(code: Code) -> list[tuple[Source, frozenset[int], MachineLoop]]:
    """Every loop with its `for`, and the instructions of it that no inner loop has.

    The `for` is the innermost around most of these; for a loop that has inner ones it is around theirs, as far as it is
    known where those were inlined.
    """
    found: list[tuple[Source, frozenset[int], MachineLoop]] = []
    for loop in sorted(loops_of(code), key=lambda loop: len(loop.body)):
        inner = [(source, other) for source, _, other in found if other.body < loop.body]
        own = loop.body.difference(*(other.body for _, other in inner))
        within = {source for source, _ in inner}
        around = [outer for source in within if (outer := set(_nest(source)[1:]))]
        nests = [_nest(code.instructions[index].places) for index in own]
        fitting = (
            [one for one in nest if one not in within and all(one in outer for outer in around)] for nest in nests
        )
        counts = Counter(nest[0] for nest in fitting if nest)
        if not counts:
            raise ValueError(f"no `for` for the loop at {code.instructions[loop.branch].places}")
        found.append((max(counts, key=lambda source: (counts[source], source)), own, loop))
    return found


def _nest(places: Source) -> list[Source]:
    """The `for` statements around a place, from the innermost outwards, each with where it was inlined."""
    found = []
    for depth, (file, number) in enumerate(places):
        enclosing = (first for first, last in _for_statements(file) if first <= number <= last)
        found += [((file, first), *places[depth + 1 :]) for first in sorted(enclosing, reverse=True)]
    return found


def _declared(loops: Loops, compiled_from: Mapping[Source, list[Moving]]) -> list[tuple[list[Moving], Loop]]:
    """The machine loops of each source, and what is declared of it."""
    by_key: dict[str, list[list[Moving]]] = {}
    for source in sorted(compiled_from, key=lambda source: source[::-1]):
        header = line_at(source[0]).strip().removeprefix("for ")
        keys = [key for key in loops if re.match(re.escape(key) + r"(?!\w)", header)]
        if not keys:
            raise ValueError(f"the specimen does not say how many turns `for {header}` takes")
        by_key.setdefault(max(keys, key=len), []).append(compiled_from[source])
    pairs: list[tuple[list[Moving], Loop]] = []
    for key, found in by_key.items():
        declared = loops[key]
        given = declared if isinstance(declared, tuple) else (declared,)
        if len(found) == 1 and len(found[0]) == len(given):
            # Triton 3.6 does not tell NVIDIA's assembler where a function was inlined: the order in the code does.
            found = [[one] for one in sorted(found[0], key=lambda pair: min(pair[1].body))]
        if len(given) != len(found):
            raise ValueError(f"{len(found)} loops `for {key}` in the machine code, {len(given)} in the specimen")
        pairs += zip(found, given, strict=True)
    return pairs


def line_at(place: Place) -> str:
    """The text of a source line, empty where there is none."""
    lines = _text(place[0]).splitlines()
    return lines[place[1] - 1] if 0 < place[1] <= len(lines) else ""


@cache
def _for_statements(file: str) -> list[tuple[int, int]]:
    """First and last line of each."""
    nodes = [node for node in ast.walk(ast.parse(_text(file))) if isinstance(node, ast.For)]
    return [(node.lineno, node.end_lineno or node.lineno) for node in nodes]


@cache
def _text(file: str) -> str:
    return Path(file).read_text() if Path(file).is_file() else ""
