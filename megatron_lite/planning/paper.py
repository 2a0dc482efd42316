"""The training step on paper: the real program on meta tensors, as one rank of a world of any size.

Nothing is computed and nothing is sent, but every tensor has its size, every message its bytes and every storage its
life. Model, schedule, ZeRO, optimizer and collectives are those that train; the process group is torch's fake one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_lite.config import Config, resolve
from megatron_lite.kernels.choice import Choice
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.build import choice_of
from megatron_lite.model.freezing import NOTHING, Patterns
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.model.objective import CrossEntropy, Objective
from megatron_lite.model.sequences import Draws, Sequences
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.ledger import Entry, ledger, phase_totals
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.planning.memory import StorageTracker, bytes_of
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer

META = torch.device("meta")
Batch = Callable[[], Sequences]  # makes one microbatch


@dataclass(frozen=True)
class PaperStep:
    """What one step of one rank takes, in bytes.

    `at_peak`: state (masters, moments, averages, gradient sums, compute copies of the shards), weights (gathered ones
    and those on their way), gradients (full ones and those on their way); what is left of `peak` is activations,
    messages and the like. `made` is the size of the tensor that was made then, whichever it belongs to; it counts with
    the rest.
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


@dataclass(frozen=True)
class _Work:
    """What runs on paper, and what is held for it beside the shards: moments and averages."""

    run: Callable[[Sequence[Sequences]], object]
    beside: Sequence[torch.Tensor] = ()


def packed(config: Config, objective: Objective, documents: int) -> Batch:
    """Full rows of so many documents, with positions of their own, the objective's columns, and what training's random
    numbers are drawn by where the configuration has some.
    """
    size = (config.train.micro_batch_size, config.train.sequence_length)

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    def made() -> Sequences:
        widths = {"token": size[1], "document": documents}
        columns = {one.name: empty(size[0], widths[one.per], dtype=one.dtype) for one in objective.columns}
        draws = Draws(empty(*size), empty(*size)) if config.draws else None
        tokens, labels, numbers, positions = (empty(*size) for _ in range(4))
        return Sequences(tokens, labels, config.model.vocab_size, numbers, positions, columns, draws)

    return made


@dataclass(frozen=True)
class _Given:
    """What goes through the model: how many microbatches (None: the configuration's), and what makes one (None: tokens
    and labels are cut from a step's samples).
    """

    microbatches: int | None
    batch: Batch | None

    def made(self, count: int, config: Config) -> list[Sequences]:
        if self.batch is not None:
            return [self.batch() for _ in range(count)]
        size = (count * config.train.micro_batch_size, config.train.sequence_length + 1)
        return microbatches_of(torch.empty(size, dtype=torch.int64, device=META), config)


def step_on_paper(
    config: Config,
    world_size: int,
    rank: int,
    microbatches: int | None = None,
    objective: Objective | None = None,
    batch: Batch | None = None,
) -> PaperStep:
    """Run one training step as `rank` of `world_size`; `microbatches` instead of the configuration's, if given,
    `objective` instead of pretraining's, and of each `batch` instead of tokens and labels alone.

    Raises UsageError for a world that the configuration does not fit, and for kernels that cannot be had.
    """

    def training(model: Model) -> _Work:
        trainer = Trainer(model, objective)
        beside = [moment for pair in trainer.optimizer.moments for moment in pair]
        beside += [] if trainer.average is None else trainer.average.values
        return _Work(partial(trainer.train_step, learning_rate=config.optim.lr), beside)

    return _on_paper(config, world_size, rank, training, _Given(microbatches, batch))


def forward_on_paper(
    config: Config,
    world_size: int,
    rank: int,
    objective: Objective | None = None,
    microbatches: int | None = None,
    batch: Batch | None = None,
) -> PaperStep:
    """Ask a model of which nothing is trained for what its end makes of a step's microbatches."""
    asked = objective or CrossEntropy(config.train.z_loss)

    def asking(model: Model) -> _Work:
        return _Work(partial(model.forward, objective=asked))

    return _on_paper(config, world_size, rank, asking, _Given(microbatches, batch), NOTHING)


def _on_paper(
    config: Config,
    world_size: int,
    rank: int,
    begin: Callable[[Model], _Work],
    given: _Given,
    trainable: Patterns | None = None,
) -> PaperStep:
    resolved = resolve(config, world_size)
    count = given.microbatches or resolved.microbatches
    shape = MeshShape.of(resolved)
    recorder, tracker = Recorder(), StorageTracker(META)
    with fake_world(rank, world_size), tracker:
        mesh = build_mesh(shape, META, schedule_of(config, resolved, count).placement, recorder)
        model = Model(config, resolved, mesh, recorder=recorder, choice=choice_on_paper(config), trainable=trainable)
        work = begin(model)
        tracker.inspect = lambda: _holdings(model.stage, work.beside)
        recorder.phase = "count"  # what comes before the first action
        work.run(given.made(count, config))
    sent = ledger(recorder.events), phase_totals(recorder.events)
    return PaperStep(rank, mesh.stage, count, tracker.peak, tracker.at_peak, tracker.made_at_peak, *sent)


def _holdings(stage: Stage, beside: Sequence[torch.Tensor]) -> dict[str, int]:
    """What the stage's shards hold now, and `beside` them."""
    state = [*beside, *(s.compute for s in stage.shards)]
    state += [t for s in stage.trained for t in (s.master, s.gradient)]
    weights = [weight.full for s in stage.shards for weight in s.weights] + [
        t for s in stage.shards for t in s.arriving
    ]
    gradients = [weight.gradient for s in stage.shards for weight in s.weights]
    gradients += [t for s in stage.trained for t in s.leaving]
    held = bytes_of(state)
    return {
        "state": held,
        "weights": bytes_of([*state, *weights]) - held,
        "gradients": bytes_of([*state, *gradients]) - held,
    }
