"""What the commands that train have in common: a configuration, the ranks' meeting, the job and its end."""

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from megatron_lite.config import Config, Resolved, resolve
from megatron_lite.evaluation.in_a_run import evaluation_of
from megatron_lite.inference.samples_in_a_run import write_samples
from megatron_lite.launch import Ending, World, joined_world, run_job
from megatron_lite.place import find_place
from megatron_lite.planning.regather import decided
from megatron_lite.training.between_steps import Meanwhile

# (configuration, what follows from it, the ranks, what looks at the model between steps) -> why the run ended
Train = Callable[[Config, Resolved, World, Meanwhile], str]


def train_on_all_ranks(config: Config, train: Train) -> None:
    """Run `train` on every rank that was started; its end goes into run_dir/exit.json."""
    place = find_place()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def job(ending: Ending) -> str:
        timeout = timedelta(seconds=config.train.timeout)
        with joined_world(place, config.train.device, timeout, Path(config.train.run_dir) / "flight") as world:
            ending.ranks_have_met(world.words)
            chosen = decided(config, place, world)
            meanwhile = Meanwhile(evaluation_of(chosen, world), write_samples)
            return train(chosen, resolve(chosen, place.world_size), world, meanwhile)

    run_job(Path(config.train.run_dir), place, job)
