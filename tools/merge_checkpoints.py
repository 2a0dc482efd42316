"""Average the weights of models of one shape: several checkpoints, or the last N of a run.

    python tools/merge_checkpoints.py runs/a runs/b --target soup --weights 2,1
    python tools/merge_checkpoints.py runs/mine --last 5 --target mean

Each SOURCE is whatever tools/convert_checkpoint.py takes, with --ema its moving average. One parameter at a time is in
memory, and its sum. TARGET is a checkpoint of weights alone (`--to hf`: a Hugging Face directory), and appears when it
is whole.
"""

import argparse
import math
from pathlib import Path

from megatron_lite.errors import UsageError, run_command
from megatron_lite.exchange import open_source
from megatron_lite.exchange.average import last_of, mean_of
from megatron_lite.exchange.convert import MODELS, check_new, write_source


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", metavar="SOURCE", type=Path, nargs="+", help="models of one shape, or one run")
    parser.add_argument("--target", type=Path, required=True, help="a new directory")
    parser.add_argument("--to", choices=sorted(MODELS), default="ours", help="what TARGET becomes (default: ours)")
    parser.add_argument("--weights", metavar="W,W,..", help="one for each source (default: all the same)")
    parser.add_argument("--last", type=int, metavar="N", help="of the one SOURCE, a run, its newest N checkpoints")
    parser.add_argument("--ema", action="store_true", help="checkpoints' averages of their weights in place of these")
    return parser.parse_args()


def weights_of(given: str | None, count: int) -> list[float]:
    """Raises UsageError unless they are `count` numbers above 0."""
    if given is None:
        return [1.0] * count
    try:
        weights = [float(part) for part in given.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"--weights {given}: must be {count} numbers above 0, one for each model")
    return weights


def main() -> None:
    arguments = parse_arguments()
    check_new(arguments.target)
    paths = arguments.sources
    if arguments.last is not None:
        if len(paths) > 1:
            raise UsageError(f"--last {arguments.last}: goes with one run, not with {len(paths)} sources")
        paths = last_of(paths[0], arguments.last)
    weights = weights_of(arguments.weights, len(paths))
    mean = mean_of([open_source(path, arguments.ema) for path in paths], weights)
    write_source(mean, arguments.target, arguments.to)
    print(f"mean of {len(paths)} models -> {MODELS[arguments.to]} {arguments.target}: {mean.size:,} parameters")
    for path, weight in zip(paths, weights, strict=True):
        print(f"  {weight / sum(weights):.4f}  {path}")


if __name__ == "__main__":
    run_command(main)
