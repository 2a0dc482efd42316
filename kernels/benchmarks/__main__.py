"""What the kernels cost at the 65B model's shapes: measured where there is a GPU, else compiled and bounded.

python -m megatron_lite.kernels.benchmarks [--output DIR] [--device NAME] [--only OPERATION ...] [--without-compile]
python -m megatron_lite.kernels.benchmarks --gate [--all-shapes] | --update-gate

Every row is in DIR/kernels.csv, and printed, as soon as it is there; what raises is a row that says so.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from megatron_lite.kernels.benchmarks import gate, ours, plot, table, timing
from megatron_lite.kernels.benchmarks.operation import Memory, Operation
from megatron_lite.kernels.benchmarks.roofline import DEVICES, roofline_rows


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_lite.kernels.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--gate", action="store_true", help="compile every kernel for every target; fail on any fault")
    action.add_argument("--update-gate", action="store_true", help="write what is compiled here to gate.json")
    parser.add_argument("--all-shapes", action="store_true", help="with --gate: at the shapes of other models too")
    parser.add_argument("--output", type=Path, default=Path("runs/kernel_benchmarks"), help="folder of CSV and picture")
    parser.add_argument("--device", choices=DEVICES, default="H100 SXM", help="whose published figures bound the times")
    parser.add_argument("--only", action="append", metavar="OPERATION", help="this operation alone; may be repeated")
    parser.add_argument("--without-compile", action="store_true", help="do not time torch.compile, which takes minutes")
    arguments = parser.parse_args(given)
    if arguments.all_shapes and not arguments.gate:
        parser.error("--all-shapes goes with --gate")
    if arguments.update_gate:
        gate.write_committed(gate.all_facts([gate.OURS, gate.PEERS]))
        return 0
    if arguments.gate:
        return run_gate(gate.TRAINED if arguments.all_shapes else None)
    known = {operation.name: operation for operation in ours.operations()}
    if strange := [name for name in arguments.only or () if name not in known]:
        parser.error(f"--only {', '.join(strange)}: known are {', '.join(known)}")
    chosen = [known[name] for name in arguments.only or known]
    if torch.cuda.is_available():
        makers = [by for by in timing.MAKERS if not (arguments.without_compile and by == "torch.compile")]
        return report(measured(chosen, makers), "Measured.", arguments.output)
    words = "NOT MEASURED: no GPU here. `compiled` rows are facts of machine code, `roofline` rows bounds on time."
    return report(chain(roofline_rows(chosen, arguments.device), compiled(chosen)), words, arguments.output)


def run_gate(shapes: str | None = None) -> int:
    """Of the 65B model's shapes, and of a module's that has others'."""
    committed, why = gate.read_committed()
    wrong, waived = gate.verdict(gate.OURS, gate.all_facts([gate.OURS]), committed)
    for module in filter(None, [shapes]):
        more = gate.verdict(module, gate.all_facts([module]), None)
        wrong, waived = wrong + more[0], waived + more[1]
    print(*filter(None, [why, *waived, *wrong, f"{len(wrong)} faults"]), sep="\n")
    return int(bool(wrong))


def compiled(operations: Sequence[Operation]) -> Iterator[table.Row]:
    names = {operation.name for operation in operations}
    for target, kernels in gate.all_facts([gate.OURS]).items():
        for name, facts in kernels.items():
            if name.partition(": ")[0] in names:  # of several kernels, "OPERATION: kernel"
                yield table.compiled_row(name, target, facts)


def measured(operations: Sequence[Operation], makers: Sequence[str]) -> Iterator[table.Row]:
    memory, bench, name = Memory("cuda", filled=True), timing.bench_on_gpu, torch.cuda.get_device_name()
    reached = timing.ceilings(bench, memory)
    print(f"{name}: a copy reaches {reached.bytes:.3g} B/s, a product of matrices {reached.flops:.3g} FLOP/s")
    yield from timing.measured_rows(operations, memory, bench, reached, name, makers)


def report(coming: Iterable[table.Row], words: str, folder: Path) -> int:
    """Write and print rows as they come, then a table and a picture of all; 1 if one failed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in table.written(coming, folder / "kernels.csv"):
        print(table.printed([row]).splitlines()[1], flush=True)
        rows.append(row)
    if any(row.median_ms is not None for row in rows):
        plot.draw(rows, folder / "kernels.svg")
    failed = sum(row.kind == "failed" for row in rows)
    print("", table.printed(rows), words, f"{len(rows)} rows, {failed} failed: {folder}/kernels.csv", sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
