"""One training step, the same on every layout: count, run the schedule, finish the gradients, clip, update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from megatron_lite.config import Config, Resolved
from megatron_lite.device import memory_of, synchronize
from megatron_lite.kernels.choice import Choice, kernels_of, optimizer_kernels_of
from megatron_lite.mesh import Mesh
from megatron_lite.model.batch import Microbatch, Sequences
from megatron_lite.model.build import build_stage, choice_of, initialize, region_of, split_of
from megatron_lite.model.objective import CrossEntropy, Objective, Outputs, joined
from megatron_lite.model.operations import Angles, AttentionMetadata, angles_of
from megatron_lite.model.transformer import Made
from megatron_lite.optim.adamw import AdamW, AdamWSettings
from megatron_lite.optim.norm import GradientNorm, clip_coefficient
from megatron_lite.parallel.collectives import Communicator, Recorder
from megatron_lite.parallel.context import Documents, documents_of
from megatron_lite.parallel.labels import label
from megatron_lite.parallel.layout import Local
from megatron_lite.parallel.pipeline.checker import ScheduleError, check
from megatron_lite.parallel.pipeline.executor import Executor, rehearse
from megatron_lite.parallel.pipeline.schedules import SCHEDULES, Schedule
from megatron_lite.parallel.pipeline.stage import Stage, kinds_of
from megatron_lite.parallel.zero import Shards, policy
from megatron_lite.training.boundaries import Boundaries, document_numbers, positions_in


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


def schedule_of(config: Config, resolved: Resolved, microbatches: int) -> Schedule:
    """The pipeline schedule of a step of so many microbatches."""
    return SCHEDULES[config.parallel.schedule](resolved.pipeline, resolved.virtual_stages, microbatches)


class Trainer:
    """A stage, its optimizer and its executors. `schedule` makes one for a number of microbatches (None: the
    configuration's); `end_of_document` is the token that ends one (None: documents change nothing, whatever the
    configuration says); `choice` the kernels (None: what the configuration means on the mesh's device); `objective`
    what is descended (None: pretraining's cross-entropy).

    Memory of a step's microbatches is freed as their backward ends.
    """

    def __init__(
        self,
        config: Config,
        resolved: Resolved,
        mesh: Mesh,
        schedule: Callable[[int], Schedule] | None = None,
        recorder: Recorder | None = None,
        end_of_document: int | None = None,
        choice: Choice | None = None,
        objective: Objective | None = None,
    ):
        self.config, self.resolved, self.mesh, self.recorder = config, resolved, mesh, recorder
        self.choice = choice or choice_of(config, mesh.device.type)
        self.objective = objective or CrossEntropy(config.train.z_loss)
        self.stage: Stage = build_stage(config, resolved, mesh, kernels_of(self.choice), self.objective)
        initialize(self.stage, config.train.seed)
        optim, kernels = config.optim, optimizer_kernels_of(self.choice)
        self.optimizer = AdamW(self.stage.shards, AdamWSettings(optim.betas, optim.eps, optim.weight_decay), kernels)
        self.norm = GradientNorm.of(self.stage.shards, mesh, kernels)
        self.rule = policy(config.parallel.zero_stage, config.parallel.regather)
        self.schedule = schedule or partial(schedule_of, config, resolved)
        self.executors: dict[tuple[int, str], Executor] = {}
        self.region, self.split = region_of(config, mesh), split_of(config, mesh)
        self.boundaries = Boundaries.of(config.data, end_of_document)

    def rehearse(self) -> None:
        """Run each kind of unit and the step's end once, on zeros; the transcript's phase `connect`.

        Kernels are compiled and loaded, workspaces and the allocator's first blocks are made, and collectives of the
        step's sizes have run, before any receive waits on the device. In a step, a first launch that has to wait for
        the device would wait for that receive, whose message another stage cannot send while it waits the same way.
        Weights and moments stay as they are; gradients begin at zero with the next step.
        """
        self._phase("connect")
        train = self.config.train
        size = (train.micro_batch_size, train.sequence_length + 1)
        batches = self._microbatches(torch.zeros(size, dtype=torch.int64, device=self.mesh.device))
        for shards in self.stage.shards:
            shards.open_gradients()
        for unit in kinds_of(self.stage):
            rehearse(unit, self.rule, batches[0], self._message())
        self._finish_gradients()
        self._totals(self.norm.local_square_sum(), batches[0].denominators, [], stop=False)
        synchronize(self.mesh.device)

    def train_step(self, samples: Tensor, learning_rate: float, stop: bool = False) -> StepResult:
        """One update from this data rank's samples, int64 [local batch, sequence + 1].

        Token ids below 0 are labels that do not count. `stop` says that this rank was asked to end the run. With
        samples on the device the host only gives orders: it copies nothing there or back, and waits when the result is
        read.
        """
        totals = self.gradients(samples, stop)
        self.update(totals.grad_norm, learning_rate)
        return totals

    def gradients(self, samples: Tensor, stop: bool = False) -> StepResult:
        """Forward and backward: every gradient, summed over microbatches and ranks, in its shard.

        Nothing here divides: the objective divides each microbatch's loss by the step's denominators.
        """
        self._phase("count")
        batches = self._microbatches(samples)
        for shards in self.stage.shards:
            shards.open_gradients()
        made = self._executor(len(batches)).run(batches, self._message())
        self._phase("finish")
        with label("finish"):
            self._finish_gradients()
            return self._totals(self.norm.local_square_sum(), batches[0].denominators, made, stop)

    def update(self, grad_norm: Tensor, learning_rate: float) -> None:
        with label("update"):
            self.optimizer.step(learning_rate, clip_coefficient(grad_norm, self.config.optim.grad_clip))

    def evaluate(self, samples: Tensor) -> StepResult:
        """The objective's numbers of as many samples as a training step takes; nothing is trained."""
        denominators, made = self._forward(samples)
        nothing = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        return self._totals(nothing, denominators, made, stop=False)

    def outputs(self, samples: Tensor) -> Outputs | None:
        """The head's numbers of every token of this data rank's samples, [local batch, S] each; nothing is trained.
        They stay where the model ends: None on other stages.
        """
        _, made = self._forward(samples)
        return joined([one.outputs for one in made if one.outputs is not None]) if made else None

    def _forward(self, samples: Tensor) -> tuple[Tensor, list[Made]]:
        self._phase("count")
        batches = self._microbatches(samples)
        return batches[0].denominators, self._executor(len(batches), "F").run(batches, self._message())

    def _executor(self, microbatches: int, kinds: str = "FBIW") -> Executor:
        """Planned once for each number of microbatches; of the schedule's actions those of some kinds: F is forward."""
        if (microbatches, kinds) not in self.executors:
            actions = self._proved(microbatches).actions[self.mesh.stage]
            actions = tuple(action for action in actions if action.kind in kinds)
            self.executors[microbatches, kinds] = Executor(
                self.stage, actions, self.rule, self.mesh.edges, self.recorder
            )
        return self.executors[microbatches, kinds]

    def _proved(self, microbatches: int) -> Schedule:
        """The step's schedule. Raises ScheduleError where it is incomplete, would stand still, or is another mesh's."""
        schedule, connected = self.schedule(microbatches), self.mesh.edges.placement
        if schedule.placement != connected:
            raise ScheduleError(f"schedule for {schedule.placement}, but the mesh was connected for {connected}")
        check(schedule, microbatches)
        return schedule

    def _microbatches(self, samples: Tensor) -> list[Microbatch]:
        """Cut [local batch, S + 1] into microbatches, and sum up the objective's denominators over the step."""
        inputs, labels = samples[:, :-1], samples[:, 1:]
        if self.boundaries is not None:
            labels = self.boundaries.counted(inputs, labels)
        size = self.config.train.micro_batch_size
        sequences = [
            Sequences(tokens, label, self.config.model.vocab_size)
            for tokens, label in zip(inputs.split(size), labels.split(size), strict=True)
        ]
        denominators = self._denominators(sequences)
        positions = self.split.positions(inputs.shape[1], samples.device)
        return [
            Microbatch(
                one.tokens[:, positions].t().contiguous(), one.labels[:, positions].t().contiguous(),
                attention, positions, one, denominators,
            )
            for one, attention in zip(sequences, self._metadata(inputs, positions, size), strict=True)
        ]  # fmt: skip

    def _denominators(self, sequences: Sequence[Sequences]) -> Tensor:
        """The objective's, over all microbatches and data ranks; context ranks see the same sequences: one counts."""
        mine = torch.stack([self.objective.denominators(one) for one in sequences]).sum(0)
        if self.mesh.context.rank > 0:
            mine.zero_()
        return self.mesh.zero.all_reduce(mine, "loss.count").wait()

    def _metadata(self, inputs: Tensor, positions: Tensor, size: int) -> list[AttentionMetadata]:
        """What attention needs to know of each microbatch; inputs [local batch, S] are of the whole sequence."""
        angles, microbatches = self._angles(positions, inputs.shape[1]), len(inputs) // size
        if self.boundaries is None:
            return [AttentionMetadata(angles, self.split)] * microbatches
        numbers = document_numbers(inputs, self.boundaries.end)
        turned = [angles] * microbatches
        documents: Sequence[Documents | None] = [None] * microbatches
        if self.boundaries.reset:
            places = positions_in(numbers)[:, positions].to(angles.positions.dtype)
            turned = [replace(angles, positions=part.t().contiguous()) for part in places.split(size)]
        if self.boundaries.mask:
            documents = documents_of(numbers, self.split.attending).split(size)
        return [AttentionMetadata(angle, self.split, seen) for angle, seen in zip(turned, documents, strict=True)]

    def _angles(self, positions: Tensor, length: int) -> Angles:
        model, dtype = self.config.model, getattr(torch, self.resolved.compute_dtype)
        return angles_of(positions.unsqueeze(1), length, model.head_dim, model.rope_theta, dtype)

    def _message(self) -> Tensor:
        """An empty tensor like what passes between stages: [T or T/tp, B, H]."""
        train = self.config.train
        length = self.region.length(train.sequence_length // self.mesh.context.size)
        size = (length, train.micro_batch_size, self.config.model.hidden_size)
        return torch.empty(size, dtype=getattr(torch, self.resolved.compute_dtype), device=self.mesh.device)

    def _finish_gradients(self) -> None:
        """What is left after the last microbatch: replicas of shards, norms over tensor ranks, tied embeddings."""
        handles = [shards.start_replicate() for shards in self.stage.shards]
        for handle in handles:
            handle.wait()
        if self.region.partial_outside:
            _sum_ranges(self.stage.shards, lambda local: local.replicated, self.mesh.tensor, "norm_gradient.sum")
        if self.config.model.tie_word_embeddings and (self.mesh.has_embedding or self.mesh.has_head):
            _sum_ranges(
                self.stage.shards, lambda local: local.name == "embed", self.mesh.embedding, "tied_gradient.sum"
            )

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
        if self.recorder is not None:
            self.recorder.phase = name


def _sum_ranges(
    stage_shards: Sequence[Shards], chosen: Callable[[Local], bool], communicator: Communicator, site: str
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
    together = torch.cat(ranges)
    communicator.all_reduce(together, site).wait()
    for target, summed in zip(ranges, together.split([r.numel() for r in ranges]), strict=True):
        target.copy_(summed)
