"""How the time beyond compute grows with ranks, and where each rank's step goes: one global batch on ever more ranks.

    python tools/benchmark/show_overhead.py --layouts 1 t2 t2p2 t2p2d2 t2p2d4

With more ranks than cores a step's time says little, so the first table counts processor seconds of all ranks together,
as a multiple of one process's. The second splits the main thread's time of the first and the last rank by kind, under a
profiler; ranks that share a core also wait for each other there.
"""

import argparse
import statistics

from compare_throughput import Layout, parse_layout, run_script

SEQUENCES = 8  # of the global batch
KINDS = ("products", "attention", "other operations", "issuing messages", "waiting for tensor",
         "waiting for pipeline", "waiting for zero", "waiting for world", "Python and the rest")  # fmt: skip


def dividing_layout(text: str) -> Layout:
    """A layout whose data ranks share the global batch evenly, so that every row does the same work."""
    layout = parse_layout(text)
    if SEQUENCES % layout.data:
        raise argparse.ArgumentTypeError(f"{text!r}: data {layout.data} must divide the batch of {SEQUENCES} sequences")
    return layout


def run(layout: Layout, regather: str, arguments: list[str]) -> list[dict[str, float]]:
    """Every rank's seconds a step."""
    accumulation = f"--accumulation={SEQUENCES // layout.data}"
    return run_script("profile_step.py", layout, [accumulation, f"--regather={regather}", *arguments])


def growth_row(layout: Layout, ranks: list[dict[str, float]], one: float) -> str:
    processor = sum(rank["processor"] for rank in ranks)
    step = statistics.median(rank["step"] for rank in ranks)
    return f"| {layout.name} | {layout.world} | {step:.2f} | {processor:.2f} | {processor / one:.2f} |"


def time_row(layout: Layout, name: str, rank: dict[str, float]) -> str:
    shares = [f"{100 * rank.get(kind, 0.0) / rank['step']:.0f}" for kind in KINDS]
    return f"| {layout.name} | {name} | {' | '.join(shares)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead by number of ranks.")
    parser.add_argument("--layouts", nargs="+", type=dividing_layout, required=True, metavar="t2p2d2")
    parser.add_argument("--regather", choices=("auto", "microbatch", "step"), default="step")
    parser.add_argument("--steps", type=int, default=6, help="of each run, two of them not timed")
    options = parser.parse_args()
    growth, times, one = [], [], None
    for layout in options.layouts:
        ranks = run(layout, options.regather, [f"--steps={options.steps}"])
        one = one or sum(rank["processor"] for rank in ranks)
        growth.append(growth_row(layout, ranks, one))
        times.append(time_row(layout, "first", ranks[0]))
        if layout.world > 1:
            times.append(time_row(layout, "last", ranks[-1]))
    print("| layout | ranks | step, s | processor, s | to the first |\n| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(growth))
    print(f"\n| layout | rank | {' | '.join(f'{kind}, %' for kind in KINDS)} |")
    print("| --- | --- |" + " ---: |" * len(KINDS))
    print("\n".join(times))


if __name__ == "__main__":
    main()
