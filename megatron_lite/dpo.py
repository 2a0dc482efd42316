"""Optimize a policy on pairs of answers against a reference (DPO):
`torchrun ... -m megatron_lite.dpo CONFIG.yaml [key=value ...]`, or without torchrun.
"""

from megatron_lite.alignment.arguments import parse_aligned
from megatron_lite.alignment.run import align
from megatron_lite.command import train_on_all_ranks
from megatron_lite.errors import run_command


def main() -> None:
    train_on_all_ranks(parse_aligned(__doc__, "dpo"), align)


if __name__ == "__main__":
    run_command(main)
