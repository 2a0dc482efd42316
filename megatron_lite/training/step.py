"""One training step, the same on every layout: count, run the schedule, finish the gradients, clip, update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.device import memory_of, synchronize
from megatron_lite.kernels.choice import optimizer_kernels_of
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy, Objective
from megatron_lite.model.outputs import Made
from megatron_lite.model.sequences import Sequences
from megatron_lite.optim.adamw import AdamW, AdamWSettings
from megatron_lite.optim.ema import MovingAverage
from megatron_lite.optim.norm import GradientNorm, clip_coefficient
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.labels import label
from megatron_lite.parallel.layout import Local
from megatron_lite.parallel.zero import TrainedShards


@dataclass(frozen=True)
class StepResult:
    """Tensors on the device, the same on every rank; reading one waits for the step."""

    numbers: dict[str, Tensor]  # the objective's, over the whole step
    denominators: Tensor  # the objective's
    grad_norm: Tensor  # before clipping
    memory: Tensor  # peak bytes on the fullest rank
    reserved: Tensor  # by the allocator, likewise; 0 on a CPU
    free: Tensor  # bytes of the device with the least left; 0 on a CPU
    stop: Tensor  # how many ranks were asked to stop

    @property
    def loss(self) -> Tensor:
        return self.numbers["loss"]

    @property
    def count(self) -> Tensor:
        """What the loss was divided by: of a mean over tokens, how many were counted."""
        return self.denominators[0]


class Trainer:
    """A model, what it descends (None: pretraining's cross-entropy) and its optimizer.

    Memory of a step's microbatches is freed as their backward ends.
    """

    def __init__(self, model: Model, objective: Objective | None = None):
        config = model.config
        self.model, self.config, self.resolved, self.mesh = model, config, model.resolved, model.mesh
        self.stage = model.stage
        self.objective = objective or CrossEntropy(config.train.z_loss)
        optim, kernels = config.optim, optimizer_kernels_of(model.choice)
        self.optimizer = AdamW(self.stage.trained, AdamWSettings(optim.betas, optim.eps, optim.weight_decay), kernels)
        self.norm = GradientNorm.of(self.stage.trained, self.mesh, kernels)
        decay = config.train.ema
        self.average = None if decay is None else MovingAverage(self.stage.trained, decay)

    def rehearse(self, batch: Sequences | None = None) -> None:
        """Run each kind of unit and the step's end once, on zeros; the transcript's phase `connect`. `batch` is what a
        microbatch will be like (None: tokens and labels alone, of the configuration's length).

        Kernels are compiled and loaded, workspaces and the allocator's first blocks are made, and collectives of the
        step's sizes have run, before any receive waits on the device. In a step, a first launch that has to wait for
        the device would wait for that receive, whose message another stage cannot send while it waits the same way.
        Weights and moments stay as they are; gradients begin at zero with the next step.
        """
        self._phase("connect")
        if batch is None:
            size = (self.config.train.micro_batch_size, self.config.train.sequence_length)
            zeros = torch.zeros(size, dtype=torch.int64, device=self.mesh.device)
            batch = Sequences(zeros, zeros, self.config.model.vocab_size)
        denominators = self.model.rehearse(batch, self.objective)
        self._finish_gradients()
        self._totals(self.norm.local_square_sum(), denominators, [], stop=False)
        synchronize(self.mesh.device)

    def train_step(self, batches: Sequence[Sequences], learning_rate: float, stop: bool = False) -> StepResult:
        """One update from this data rank's microbatches, equally many on every data rank.

        `stop` says that this rank was asked to end the run. With batches on the device the host only gives orders: it
        copies nothing there or back, and waits when the result is read.
        """
        totals = self.gradients(batches, stop)
        self.update(totals.grad_norm, learning_rate)
        return totals

    def gradients(self, batches: Sequence[Sequences], stop: bool = False) -> StepResult:
        """Forward and backward: every gradient, summed over microbatches and ranks, in its shard.

        Nothing here divides: the objective divides each microbatch's loss by the step's denominators.
        """
        self._phase("count")
        microbatches = self.model.microbatches(batches, self.objective)
        for shards in self.stage.trained:
            shards.open_gradients()
        made = self.model.run(microbatches)
        self._phase("finish")
        with label("finish"):
            self._finish_gradients()
            return self._totals(self.norm.local_square_sum(), microbatches[0].denominators, made, stop)

    def update(self, grad_norm: Tensor, learning_rate: float) -> None:
        with label("update"):
            if self.average is not None and self.optimizer.updates == 0:
                self.average.begin()  # weights may have been loaded since
            self.optimizer.step(learning_rate, clip_coefficient(grad_norm, self.config.optim.grad_clip))
            if self.average is not None:
                self.average.update()

    def evaluate(self, batches: Sequence[Sequences]) -> StepResult:
        """The objective's numbers of some microbatches, equally many on every data rank; nothing is trained."""
        self._phase("count")
        microbatches = self.model.asked(batches, self.objective)
        made = self.model.run(microbatches, "F")
        nothing = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        return self._totals(nothing, microbatches[0].denominators, made, stop=False)

    def _finish_gradients(self) -> None:
        """What is left after the last microbatch: replicas of shards, norms over tensor ranks, tied embeddings."""
        trained, mesh, outside = self.stage.trained, self.mesh, self.model.region.partial_outside
        handles = [shards.start_replicate() for shards in trained]
        for handle in handles:
            handle.wait()
        _sum_ranges(
            trained, lambda local: local.replicated and (local.inside or outside), mesh.tensor, "norm_gradient.sum"
        )
        if self.config.model.tie_word_embeddings and (mesh.has_embedding or mesh.has_head):
            _sum_ranges(trained, lambda local: local.name == "embed", mesh.embedding, "tied_gradient.sum")

    def _totals(self, square_sum: Tensor, denominators: Tensor, made: Sequence[Made], stop: bool) -> StepResult:
        """What every rank adds to the step's result: one all-gather of a few numbers, combined in rank order."""
        objective = self.objective
        # Tensor and context ranks made the same numbers: one of them counts.
        mine = made if self.mesh.tensor.rank == self.mesh.context.rank == 0 else []
        sums = [square_sum.new_zeros(()) + sum(one.numbers[name] for one in mine) for name in objective.sums]
        lowest = square_sum.new_full((), float("-inf"))
        maxima = [torch.stack([lowest, *(one.numbers[name] for one in mine)]).amax() for name in objective.maxima]
        # Filled by the device: a tensor made here and copied there would have the host wait for the whole backward.
        memory = memory_of(self.mesh.device)
        known = [square_sum.new_full((), float(x)) for x in (stop, memory.peak, memory.reserved, memory.free)]
        row = torch.stack([square_sum, *sums, *maxima, *known]).unsqueeze(0)
        ranks = self.mesh.world.all_gather(row, "step.totals").wait()
        added, most = ranks.sum(0), ranks.amax(0)
        last, end = 1 + len(sums), 1 + len(sums) + len(maxima)
        numbers = dict(zip(objective.sums, added[1:last], strict=True))
        numbers |= zip(objective.maxima, most[last:end], strict=True)
        return StepResult(
            numbers, denominators, added[0].sqrt(), most[-3], most[-2], ranks[:, -1].min(), stop=added[-4]
        )

    def _phase(self, name: str) -> None:
        if self.model.recorder is not None:
            self.model.recorder.phase = name


def _sum_ranges(
    stage_shards: Sequence[TrainedShards], chosen: Callable[[Local], bool], communicator: Communicator, site: str
) -> None:
    """Sum some weights' gradient ranges over a communicator, as one message."""
    if communicator.size == 1:
        return
    ranges = [
        shards.gradient[begin:end]
        for shards in stage_shards
        for local, begin, end in shards.layout.ranges()
        if chosen(local)
    ]
    if not ranges:
        return
    together = torch.cat(ranges)
    communicator.all_reduce(together, site).wait()
    for target, summed in zip(ranges, together.split([r.numel() for r in ranges]), strict=True):
        target.copy_(summed)
