"""Train a reward model on pairs of answers: `torchrun ... -m megatron_lite.reward CONFIG.yaml [key=value ...]`."""

from megatron_lite.alignment.arguments import parse_aligned
from megatron_lite.alignment.run import align
from megatron_lite.command import train_on_all_ranks
from megatron_lite.errors import run_command


def main() -> None:
    train_on_all_ranks(parse_aligned(__doc__, "reward"), align)


if __name__ == "__main__":
    run_command(main)
