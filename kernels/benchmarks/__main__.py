"""python -m megatron_lite.kernels.benchmarks [--gate | --update-gate]"""

import argparse
import sys

from megatron_lite.kernels.benchmarks import gate


def main() -> int:
    parser = argparse.ArgumentParser(prog="megatron_lite.kernels.benchmarks", description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--gate", action="store_true", help="compile every kernel for every target; fail on any fault")
    action.add_argument("--update-gate", action="store_true", help="write what is compiled here to gate.json")
    arguments = parser.parse_args()
    if arguments.update_gate:
        gate.write_committed(gate.all_facts([gate.OURS, gate.PEERS]))
        return 0
    committed, why = gate.read_committed()
    wrong, waived = gate.verdict(gate.OURS, gate.all_facts([gate.OURS]), committed)
    print(*filter(None, [why, *waived, *wrong, f"{len(wrong)} faults"]), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
