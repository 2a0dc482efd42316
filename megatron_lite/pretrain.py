"""Pretrain a model: `torchrun ... -m megatron_lite.pretrain CONFIG.yaml [key=value ...]`, or without torchrun."""

import logging
from datetime import timedelta
from pathlib import Path

from megatron_lite.config import parse_arguments, resolve
from megatron_lite.errors import run_command
from megatron_lite.evaluation.in_a_run import evaluation_of
from megatron_lite.launch import Ending, joined_world, run_job
from megatron_lite.place import find_place
from megatron_lite.planning.regather import decided
from megatron_lite.training.loop import pretrain


def main() -> None:
    config = parse_arguments(__doc__)
    place = find_place()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def job(ending: Ending) -> str:
        train = config.train
        timeout = timedelta(seconds=train.timeout)
        with joined_world(place, train.device, timeout, Path(train.run_dir) / "flight") as world:
            ending.ranks_have_met(world.words)
            chosen = decided(config, place, world)
            return pretrain(chosen, resolve(chosen, place.world_size), world, evaluation_of(chosen, world))

    run_job(Path(config.train.run_dir), place, job)


if __name__ == "__main__":
    run_command(main)
