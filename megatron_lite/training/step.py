"""One training step, the same on every layout: count, run the schedule, finish the gradients, clip, update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.config import Config, Resolved
from megatron_lite.device import memory_bytes
from megatron_lite.mesh import Mesh
from megatron_lite.model.build import build_stage, initialize, region_of
from megatron_lite.model.operations import Rotary, rotary
from megatron_lite.model.transformer import Microbatch
from megatron_lite.optim.adamw import AdamW, AdamWSettings
from megatron_lite.optim.norm import clip_coefficient, local_square_sum
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.pipeline.executor import Executor
from megatron_lite.parallel.pipeline.schedules import SCHEDULES, Action, Schedule
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.zero import Shards, policy


@dataclass(frozen=True)
class StepResult:
    """Tensors on the device, the same on every rank; reading one waits for the step."""

    loss: Tensor  # mean over the step's counted tokens
    z_loss: Tensor
    grad_norm: Tensor  # before clipping
    count: Tensor  # counted tokens
    memory: Tensor  # peak bytes on the fullest rank
    stop: Tensor  # how many ranks were asked to stop


class Trainer:
    """A stage, its optimizer and its executor. Memory of a step's microbatches is freed as their backward ends."""

    def __init__(self, config: Config, resolved: Resolved, mesh: Mesh, schedule: Schedule | None = None,
                 recorder: Recorder | None = None):  # fmt: skip
        self.config, self.resolved, self.mesh, self.recorder = config, resolved, mesh, recorder
        self.stage: Stage = build_stage(config, resolved, mesh)
        initialize(self.stage, config.train.seed)
        optim = config.optim
        self.optimizer = AdamW(self.stage.shards, AdamWSettings(optim.betas, optim.eps, optim.weight_decay))
        self.rule = policy(config.parallel.zero_stage, config.parallel.zero_regather)
        build = SCHEDULES[config.parallel.schedule]
        schedule = schedule or build(resolved.pipeline, 1, resolved.microbatches)
        self.executor = Executor(self.stage, schedule[mesh.stage], self.rule, mesh.edges, recorder)
        forwards = tuple(Action("F", m) for m in range(resolved.microbatches))
        self.evaluator = Executor(self.stage, forwards, self.rule, mesh.edges, recorder)
        self.region = region_of(config, mesh)

    def train_step(self, samples: Tensor, learning_rate: float, stop: bool = False) -> StepResult:
        """One update from this data rank's samples, int64 [local batch, sequence + 1].

        Token ids below 0 are labels that do not count. `stop` says that this rank was asked to end the run.
        """
        totals = self.gradients(samples, stop)
        self.update(totals.grad_norm, learning_rate)
        return totals

    def gradients(self, samples: Tensor, stop: bool = False) -> StepResult:
        """Forward and backward: every gradient, summed and divided by the counted tokens, in its shard."""
        batches = self._microbatches(samples)
        for shards in self.stage.shards:
            shards.open_gradients()
        self.executor.run(batches, self._message())
        self._phase("finish")
        self._finish_gradients()
        return self._totals(local_square_sum(self.stage.shards, self.mesh), batches, stop)

    def update(self, grad_norm: Tensor, learning_rate: float) -> None:
        self.optimizer.step(learning_rate, clip_coefficient(grad_norm, self.config.optim.grad_clip))

    def evaluate(self, samples: Tensor) -> StepResult:
        """Mean loss of as many samples as a training step takes; weights and gradients stay as they are."""
        batches = self._microbatches(samples)
        self.evaluator.run(batches, self._message())
        return self._totals(torch.zeros((), dtype=torch.float64, device=self.mesh.device), batches, stop=False)

    def _microbatches(self, samples: Tensor) -> list[Microbatch]:
        """Cut [local batch, S + 1] into tokens and labels [S, B] of microbatches, with the step's token count."""
        self._phase("count")
        labels = samples[:, 1:]
        count = ((labels >= 0) & (labels < self.config.model.vocab_size)).sum(dtype=torch.float64)
        count = self.mesh.zero.all_reduce(count, "loss.count").wait()
        rope = self._rope(samples.shape[1] - 1)
        return [
            Microbatch(part[:, :-1].t().contiguous(), part[:, 1:].t().contiguous(), rope, count)
            for part in samples.split(self.config.train.micro_batch_size)
        ]

    def _rope(self, length: int) -> Rotary:
        positions = torch.arange(length, device=self.mesh.device)
        return rotary(positions, self.config.model, getattr(torch, self.resolved.compute_dtype))

    def _message(self) -> Tensor:
        """An empty tensor like what passes between stages: [T or T/tp, B, H]."""
        train = self.config.train
        size = (self.region.length(train.sequence_length), train.micro_batch_size, self.config.model.hidden_size)
        return torch.empty(size, dtype=getattr(torch, self.resolved.compute_dtype), device=self.mesh.device)

    def _finish_gradients(self) -> None:
        """What is left after the last microbatch: replicas of shards, norms over tensor ranks, tied embeddings."""
        handles = [shards.start_replicate() for shards in self.stage.shards]
        for handle in handles:
            handle.wait()
        if self.region.partial_outside:
            _sum_ranges(self.stage.shards, lambda local: local.replicated, self.mesh.tensor, "norm_gradient.sum")
        if self.config.model.tie_word_embeddings and (self.mesh.first_stage or self.mesh.last_stage):
            _sum_ranges(
                self.stage.shards, lambda local: local.name == "embed", self.mesh.embedding, "tied_gradient.sum"
            )

    def _totals(self, square_sum: Tensor, batches: Sequence[Microbatch], stop: bool) -> StepResult:
        """What every rank adds to the step's result: one all-gather of five numbers, combined in rank order."""
        count = batches[0].count
        loss = z_loss = torch.zeros_like(square_sum)
        if self.mesh.last_stage and self.mesh.tensor.rank == 0:
            loss = torch.stack([batch.loss for batch in batches]).sum(dtype=torch.float64) / count
            z_loss = torch.stack([batch.z_loss for batch in batches]).sum(dtype=torch.float64) / count
        memory, asked = torch.tensor([memory_bytes()[0], stop], dtype=torch.float64).to(self.mesh.device)
        mine = torch.stack([square_sum, loss, z_loss, memory, asked]).unsqueeze(0)
        ranks = self.mesh.world.all_gather(mine, "step.totals").wait()
        sums = ranks.sum(0)
        return StepResult(sums[1], sums[2], sums[0].sqrt(), count, ranks[:, 3].max(), sums[4])

    def _phase(self, name: str) -> None:
        if self.recorder is not None:
            self.recorder.phase = name


def _sum_ranges(stage_shards: Sequence[Shards], chosen, communicator, site: str) -> None:
    """Sum some weights' gradient ranges over a communicator, as one message."""
    if communicator.size == 1:
        return
    ranges = [
        shards.gradient[begin:end]
        for shards in stage_shards
        for local, begin, end in shards.layout.ranges()
        if chosen(local)
    ]
    together = torch.cat(ranges)
    communicator.all_reduce(together, site).wait()
    for target, summed in zip(ranges, together.split([r.numel() for r in ranges]), strict=True):
        target.copy_(summed)
