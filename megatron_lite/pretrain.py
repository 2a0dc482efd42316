"""Pretrain a model: `torchrun ... -m megatron_lite.pretrain CONFIG.yaml [key=value ...]`, or without torchrun."""

from megatron_lite.command import train_on_all_ranks
from megatron_lite.config import parse_arguments
from megatron_lite.errors import run_command
from megatron_lite.training.loop import pretrain


def main() -> None:
    train_on_all_ranks(parse_arguments(__doc__), pretrain)


if __name__ == "__main__":
    run_command(main)
