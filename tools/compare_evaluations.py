"""Set checkpoints side by side, over training steps: files of `megatron_lite.evaluate --output` as a page.

    python tools/compare_evaluations.py runs/mine/step_*.json --output comparison.html

A checkpoint of ours has its step and its run from the name that the file holds; the page opens without a network.
"""

import argparse
from pathlib import Path

from megatron_lite.errors import run_command
from megatron_lite.evaluation.page import comparison, read_evaluation
from megatron_lite.files import check_output, publish_output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="F.json", type=Path, nargs="+", help="results, one file a checkpoint")
    parser.add_argument("--output", metavar="PAGE.html", type=Path, required=True)
    arguments = parser.parse_args()
    check_output(arguments.output)
    publish_output(arguments.output, comparison([read_evaluation(path) for path in arguments.files]))
    print(arguments.output)


if __name__ == "__main__":
    run_command(main)
