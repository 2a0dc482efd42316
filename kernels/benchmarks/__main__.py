"""What the kernels cost at the 65B model's shapes: measured where there is a GPU, else compiled and bounded.

python -m megatron_lite.kernels.benchmarks [--output DIR] [--device NAME]
python -m megatron_lite.kernels.benchmarks --gate | --update-gate
"""

import argparse
import sys
from pathlib import Path

import torch
from megatron_lite.kernels.benchmarks import gate, ours, plot, table, timing
from megatron_lite.kernels.benchmarks.operation import Memory
from megatron_lite.kernels.benchmarks.roofline import DEVICES, roofline_rows


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_lite.kernels.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--gate", action="store_true", help="compile every kernel for every target; fail on any fault")
    action.add_argument("--update-gate", action="store_true", help="write what is compiled here to gate.json")
    parser.add_argument("--output", type=Path, default=Path("runs/kernel_benchmarks"), help="folder of CSV and picture")
    parser.add_argument("--device", choices=DEVICES, default="H100 SXM", help="whose published figures bound the times")
    arguments = parser.parse_args(given)
    if arguments.update_gate:
        gate.write_committed(gate.all_facts([gate.OURS, gate.PEERS]))
        return 0
    if arguments.gate:
        return run_gate()
    if torch.cuda.is_available():
        report(measured(), "Measured.", arguments.output)
    else:
        words = "NOT MEASURED: no GPU here. `compiled` rows are facts of machine code, `roofline` rows bounds on time."
        report([*roofline_rows(ours.operations(), arguments.device), *compiled()], words, arguments.output)
    return 0


def run_gate() -> int:
    committed, why = gate.read_committed()
    wrong, waived = gate.verdict(gate.OURS, gate.all_facts([gate.OURS]), committed)
    print(*filter(None, [why, *waived, *wrong, f"{len(wrong)} faults"]), sep="\n")
    return int(bool(wrong))


def compiled() -> list[table.Row]:
    facts = gate.all_facts([gate.OURS])
    return [table.compiled_row(name, target, one) for target, kernels in facts.items() for name, one in kernels.items()]


def measured() -> list[table.Row]:
    memory, bench, name = Memory("cuda", filled=True), timing.bench_on_gpu, torch.cuda.get_device_name()
    reached = timing.ceilings(bench, memory)
    print(f"{name}: a copy reaches {reached.bytes:.3g} B/s, a product of matrices {reached.flops:.3g} FLOP/s")
    return list(timing.measured_rows(ours.operations(), memory, bench, reached, name))


def report(rows: list[table.Row], words: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.write_csv(rows, folder / "kernels.csv")
    plot.draw(rows, folder / "kernels.svg")
    print(table.printed(rows), words, f"Written to {folder}/kernels.csv and kernels.svg.", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
