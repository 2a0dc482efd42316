"""Products of few rows with a weight, as decoding has them, on a CPU in float32: reordered by oneDNN beside as it is.

    python tools/benchmark/reordered_weights.py --threads 2

Prints for each weight [N, K] and number of rows how much faster the reordered one is, medians of rounds in one run.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from megatron_lite.parallel.products import ROWS

SHAPES = ((576, 576), (960, 576), (3072, 576), (576, 1536), (49152, 576), (4096, 4096), (11008, 4096))
COUNTS = (1, 2, 4, 8, 16, 32, 128, 512)
MEMORY = 200_000_000  # bytes of weights that take turns, so that none stays in a cache


def seconds(product: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    begin = time.perf_counter()
    for weight in weights:
        product(weight)
    return (time.perf_counter() - begin) / len(weights)


def ratio(shape: tuple[int, int], rows: int, rounds: int) -> float:
    size, length = shape
    weights = [torch.randn(size, length) for _ in range(max(2, min(40, MEMORY // (4 * size * length))))]
    reordered = [torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) for weight in weights]
    x = torch.randn(rows, length)
    found = []
    for _ in range(rounds):
        plain = seconds(lambda weight: torch.mm(x, weight.t()), weights)
        faster = seconds(lambda weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""), reordered)
        found.append(plain / faster)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"| weight | {' | '.join(f'{rows} rows' for rows in COUNTS)} |\n| --- |{' ---: |' * len(COUNTS)}")
    for shape in SHAPES:
        cells = (f"{ratio(shape, rows, arguments.rounds):.2f}" for rows in COUNTS)
        print(f"| {shape[0]} x {shape[1]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
