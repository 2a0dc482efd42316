"""Train a reward model on pairs of answers: `torchrun ... -m megatron_lite.reward CONFIG.yaml [key=value ...]`, or let
one score rows: `[torchrun ...] -m megatron_lite.reward CHECKPOINT --score F.jsonl --output G.jsonl [parallel.tensor=2
...]`, where the CONFIG.yaml of its run stands for its newest checkpoint.
"""

import sys

from megatron_lite.alignment.arguments import parse_aligned
from megatron_lite.alignment.run import align
from megatron_lite.alignment.score_command import score
from megatron_lite.command import train_on_all_ranks
from megatron_lite.errors import run_command


def main() -> None:
    if any(argument.partition("=")[0] == "--score" for argument in sys.argv[1:]):
        score(__doc__)
    else:
        train_on_all_ranks(parse_aligned(__doc__, "reward"), align)


if __name__ == "__main__":
    run_command(main)
