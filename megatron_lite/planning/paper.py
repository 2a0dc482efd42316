"""The training step on paper: the real program on meta tensors, as one rank of a world of any size.

Nothing is computed and nothing is sent, but every tensor has its size, every message its bytes and every storage its
life. Model, schedule, ZeRO, optimizer and collectives are those that train; the process group is torch's fake one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_lite.config import Config, resolve
from megatron_lite.kernels.choice import Choice
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.build import choice_of
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.ledger import Entry, ledger, phase_totals
from megatron_lite.planning.memory import StorageTracker, bytes_of
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer

META = torch.device("meta")


@dataclass(frozen=True)
class PaperStep:
    """What one step of one rank takes, in bytes.

    `at_peak`: state (masters, moments, gradient sums, compute copies of the shards), weights (gathered ones and those
    on their way), gradients (full ones and those on their way); what is left of `peak` is activations, messages and the
    like. `made` is the size of the tensor that was made then, whichever it belongs to; it counts with the rest.
    """

    rank: int
    stage: int
    microbatches: int
    peak: int
    at_peak: Mapping[str, int]
    made: int
    traffic: Mapping[tuple[str, str], Entry]
    phases: Mapping[tuple[str, str], Entry]

    @property
    def activations(self) -> int:
        return self.peak - sum(self.at_peak.values())


@contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[None]:
    """The default process group of a job that nobody else is in. Raises ValueError where there is one already."""
    dist.init_process_group("cpu:fake,meta:fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def choice_on_paper(config: Config) -> Choice:
    """The kernels of a step on paper: what the configuration means on a GPU. Raises UsageError."""
    return choice_of(config, "cuda")


def step_on_paper(config: Config, world_size: int, rank: int, microbatches: int | None = None) -> PaperStep:
    """Run one training step as `rank` of `world_size`; `microbatches` instead of the configuration's, if given.

    Raises UsageError for a world that the configuration does not fit, and for kernels that cannot be had.
    """
    resolved = resolve(config, world_size)
    count = microbatches or resolved.microbatches
    shape = MeshShape(resolved.pipeline, resolved.data, resolved.context, resolved.tensor, config.parallel.zero_group)
    recorder, tracker = Recorder(), StorageTracker(META)
    with fake_world(rank, world_size), tracker:
        mesh = build_mesh(shape, META, schedule_of(config, resolved, count).placement, recorder)
        trainer = Trainer(Model(config, resolved, mesh, recorder=recorder, choice=choice_on_paper(config)))
        tracker.inspect = lambda: _holdings(trainer)
        size = (count * config.train.micro_batch_size, config.train.sequence_length + 1)
        samples = torch.empty(size, dtype=torch.int64, device=META)
        trainer.train_step(microbatches_of(samples, config), learning_rate=config.optim.lr)
    sent = ledger(recorder.events), phase_totals(recorder.events)
    return PaperStep(rank, mesh.stage, count, tracker.peak, tracker.at_peak, tracker.made_at_peak, *sent)


def _holdings(trainer: Trainer) -> dict[str, int]:
    """What the stage's shards hold now."""
    shards = trainer.stage.shards
    state = [s.compute for s in shards] + [t for s in trainer.stage.trained for t in (s.master, s.gradient)]
    state += [moment for pair in trainer.optimizer.moments for moment in pair]
    weights = [weight.full for s in shards for weight in s.weights] + [t for s in shards for t in s.arriving]
    gradients = [weight.gradient for s in shards for weight in s.weights]
    gradients += [t for s in trainer.stage.trained for t in s.leaving]
    held = bytes_of(state)
    return {
        "state": held,
        "weights": bytes_of([*state, *weights]) - held,
        "gradients": bytes_of([*state, *gradients]) - held,
    }
