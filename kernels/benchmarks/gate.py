"""The gate: what every kernel's machine code has to be, on every target, read without a GPU.

Absolute rules first; then the facts of gate.json, which a change may not worsen; then the peers, of which none may be
better. gate.json has facts of each Triton that it was written under: under another the last two are not compared.
Of the shapes of `trained.py` the absolute rules alone are asked for.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from os import cpu_count
from pathlib import Path

import triton
from megatron_lite.kernels.benchmarks.compiled import Facts, compiled
from megatron_lite.kernels.benchmarks.specimen import Specimen

OURS, TRAINED, PEERS = (f"megatron_lite.kernels.benchmarks.{name}" for name in ("ours", "trained", "peers"))
COMMITTED = Path(__file__).parent / "gate.json"
ALLOWED = 1.05

AllFacts = dict[str, dict[str, Facts]]  # by target, by specimen


def all_facts(modules: Iterable[str]) -> AllFacts:
    """The facts of all specimens of modules that have `specimens()`, compiled by a process on each core."""
    tasks = [(module, one.name, one.target) for module in modules for one in specimens_of(module)]
    found: AllFacts = {}
    with ProcessPoolExecutor(cpu_count()) as pool:
        for (_, name, target), facts in zip(tasks, pool.map(_facts_of, *zip(*tasks, strict=True)), strict=True):
            found.setdefault(target, {})[name] = facts
    return found


@cache
def specimens_of(module: str) -> list[Specimen]:
    return import_module(module).specimens()


def _facts_of(module: str, name: str, target: str) -> Facts:
    # A compiled function cannot be sent to another process, but be found there.
    specimen = next(one for one in specimens_of(module) if (one.name, one.target) == (name, target))
    try:
        return compiled(specimen)
    except Exception as error:
        error.add_note(f"in {name}, {target}")
        raise


@dataclass(frozen=True)
class Fault:
    kernel: str
    target: str
    fact: str
    what: str

    def __str__(self) -> str:
        return f"{self.kernel}, {self.target}, {self.fact}: {self.what}"


def forbidden(specimen: Specimen, facts: Facts) -> list[Fault]:
    """What no kernel may do, whatever it did before."""
    found = {
        "spills": facts.spills and f"{facts.spills}, must be none",
        "occupancy": not facts.occupancy and f"does not start: {facts.shared} bytes of shared memory",
        "fp64": facts.fp64 and f"{facts.fp64} instructions in double precision, must be none",
        "wide": not facts.wide and "no global access of 128 bits",
        "narrow": facts.narrow_at and f"less than 128 bits: {'; '.join(facts.narrow_at)}",
        "tensor_core": specimen.products and not facts.tensor_core and "no instruction uses tensor cores",
        "serialized": facts.serialized and f"each product waits for the one before in {facts.serialized} loops",
    }
    return [Fault(specimen.name, specimen.target, fact, what) for fact, what in found.items() if what]


def regressions(specimen: Specimen, facts: Facts, before: Facts) -> list[Fault]:
    """Where facts are worse than they were: 5% more registers or instructions run, any occupancy less, any spill or
    narrow access more.
    """
    found = {
        fact: f"{getattr(facts, fact)}, committed {getattr(before, fact)}"
        for fact in ("registers", "per_element")
        if getattr(facts, fact) > ALLOWED * getattr(before, fact)
    }
    if facts.occupancy < before.occupancy:
        found["occupancy"] = f"{facts.occupancy}%, committed {before.occupancy}%"
    if facts.spills > before.spills:
        found["more spills"] = f"{facts.spills}, committed {before.spills}"
    if facts.narrow > before.narrow:
        found["more narrow"] = f"{facts.narrow} accesses of less than 128 bits, committed {before.narrow}"
    return [Fault(specimen.name, specimen.target, fact, what) for fact, what in found.items()]


def behind(specimen: Specimen, facts: Facts, peers: Mapping[str, Facts]) -> list[Fault]:
    """Where a peer, "NAME of PEER", runs fewer instructions for an element, or leaves room for more warps."""
    found = []
    for peer, other in peers.items():
        if not peer.startswith(f"{specimen.name} of "):
            continue
        if facts.per_element > other.per_element:
            found.append(("a peer's per_element", f"{facts.per_element}, {peer} {other.per_element}"))
        if facts.occupancy < other.occupancy:
            found.append(("a peer's occupancy", f"{facts.occupancy}%, {peer} {other.occupancy}%"))
    return [Fault(specimen.name, specimen.target, fact, what) for fact, what in found]


def faults_of(specimen: Specimen, facts: Facts, committed: AllFacts | None) -> list[Fault]:
    """Everything that is wrong with a kernel; against nothing committed where there is None."""
    found = forbidden(specimen, facts)
    if committed is not None:
        before = committed.get(specimen.target, {})
        if specimen.name in before:
            found += regressions(specimen, facts, before[specimen.name])
        else:
            found.append(Fault(specimen.name, specimen.target, "committed", "not in gate.json; --update-gate adds it"))
        found += behind(specimen, facts, before)
    return found


def verdict(module: str, found: AllFacts, committed: AllFacts | None) -> tuple[list[Fault], list[str]]:
    """(faults of a module's specimens, those that are waived and why). A waiver that none needs is a fault."""
    wrong, used, why = [], set(), []
    for specimen in specimens_of(module):
        for fault in faults_of(specimen, found[specimen.target][specimen.name], committed):
            waiver = next(
                (key for key in (f"{fault.fact} on {fault.target}", fault.fact) if key in specimen.waived), None
            )
            if waiver is None:
                wrong.append(fault)
            else:
                used.add((fault.kernel, waiver))
                why.append(f"waived: {fault} ({specimen.waived[waiver]})")
    for specimen in specimens_of(module) if committed is not None else []:
        unused = [fact for fact in specimen.waived if (specimen.name, fact) not in used]
        wrong += [Fault(specimen.name, specimen.target, fact, "is waived, and need not be") for fact in unused]
    return wrong, why


def read_committed(path: Path = COMMITTED) -> tuple[AllFacts | None, str]:
    """What is committed for the installed Triton; None, and why, where it is of another."""
    versions = json.loads(path.read_text())
    if triton.__version__ not in versions:
        known = ", ".join(versions)
        return None, f"{path.name} has Triton {known} and not {triton.__version__}, which is installed: not compared"
    return {
        target: {name: Facts(**facts | {"narrow_at": tuple(facts["narrow_at"])}) for name, facts in kernels.items()}
        for target, kernels in versions[triton.__version__].items()
    }, ""


def write_committed(found: AllFacts, path: Path = COMMITTED) -> None:
    """Replace what is committed for the installed Triton. A peer that is not installed here keeps its facts."""
    before = read_committed(path)[0] if path.exists() else None
    versions = json.loads(path.read_text()) if path.exists() else {}
    for target, kernels in (before or {}).items():
        for name, facts in kernels.items():
            if " of " in name:
                found.setdefault(target, {}).setdefault(name, facts)
    plain = {
        target: {name: asdict(facts) for name, facts in sorted(kernels.items())} for target, kernels in found.items()
    }
    path.write_text(_text(versions | {triton.__version__: plain}))


def _text(versions: Mapping) -> str:
    """JSON with one line for each kernel, so that a change shows as the kernels it is of."""

    def block(depth: int, entries: Iterable[tuple[str, str]]) -> str:
        lines = (f"{' ' * depth}{json.dumps(key)}: {value}" for key, value in entries)
        return "{\n" + ",\n".join(lines) + f"\n{' ' * (depth - 1)}}}"

    def kernels_in(kernels: Mapping) -> str:
        return block(3, ((name, json.dumps(facts)) for name, facts in kernels.items()))

    def targets_in(targets: Mapping) -> str:
        return block(2, ((target, kernels_in(kernels)) for target, kernels in targets.items()))

    return block(1, ((version, targets_in(targets)) for version, targets in sorted(versions.items()))) + "\n"
