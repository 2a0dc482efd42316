"""A model on a mesh: its stage on this rank, and what runs it, forward and backward or forward alone.

It knows neither data sets nor an optimizer; training/step.py trains one. Several may stand on one mesh, an actor beside
its reference or a critic: one after the other they use the same channels.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from math import lcm

import torch
from torch import Tensor

from megatron_lite.config import Config, Resolved
from megatron_lite.kernels.choice import Choice, kernels_of
from megatron_lite.mesh import Mesh
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.build import base_of, build_stage, choice_of, initialize, region_of, split_of, undivided
from megatron_lite.model.freezing import Patterns, trained_by
from megatron_lite.model.objective import Objective, TokenObjective
from megatron_lite.model.operations import Angles, AttentionMetadata, angles_of
from megatron_lite.model.outputs import Made, Outputs, Values, bring_to_first, stacked
from megatron_lite.model.sequences import Draws, Sequences, check_columns
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.context import documents_of
from megatron_lite.parallel.pipeline.checker import ScheduleError, check
from megatron_lite.parallel.pipeline.executor import Executor, rehearse
from megatron_lite.parallel.pipeline.messages import Message
from megatron_lite.parallel.pipeline.schedules import SCHEDULES, Schedule
from megatron_lite.parallel.pipeline.stage import Stage, kinds_of
from megatron_lite.parallel.zero import policy_of


def schedule_of(config: Config, resolved: Resolved, microbatches: int) -> Schedule:
    """The pipeline schedule of a step of so many microbatches."""
    return SCHEDULES[config.parallel.schedule](resolved.pipeline, resolved.virtual_stages, microbatches)


class Model:
    """`schedule` makes one for a number of microbatches (None: the configuration's); `choice` are the kernels (None:
    what the configuration means on the mesh's device); `trainable` the patterns of what is trained (None: the
    configuration's; NOTHING: a model that is only asked). Weights begin as `train.seed` says.

    Raises UsageError for kernels that cannot run and patterns that do not fit.
    """

    def __init__(
        self,
        config: Config,
        resolved: Resolved,
        mesh: Mesh,
        schedule: Callable[[int], Schedule] | None = None,
        recorder: Recorder | None = None,
        choice: Choice | None = None,
        trainable: Patterns | None = None,
    ):
        self.config, self.resolved, self.mesh, self.recorder = config, resolved, mesh, recorder
        self.choice = choice or choice_of(config, mesh.device.type)
        patterns = trained_by(config) if trainable is None else trainable
        self.stage: Stage = build_stage(config, resolved, mesh, kernels_of(self.choice), patterns)
        initialize(self.stage, config.train.seed)
        self.policy = policy_of(config.parallel.zero_stage, config.parallel.regather)
        self.schedule = schedule or partial(schedule_of, config, resolved)
        self.executors: dict[tuple[int, str], Executor] = {}
        self.region, self.split = region_of(config, mesh), split_of(config, mesh)

    @property
    def multiple(self) -> int:
        """What a microbatch's length must be a multiple of, to be divided over context and tensor ranks."""
        context, ring = self.mesh.context.size, self.split.kind == "ring"
        tensor = self.mesh.tensor.size if self.config.parallel.sequence else 1
        return lcm(context * tensor, 2 * context if ring and context > 1 else context)

    def undivided(self) -> Stage:
        """The stage's weights in units for new tokens beside a cache (inference/); they are not copied."""
        return undivided(self.stage, self.config, self.resolved, self.mesh)

    def base(self) -> "Model":
        """The same weights without adapters, which are not copied either: what an adapted policy is held against."""
        plain = copy(self)
        plain.config = self.config.model_copy(update={"lora": None})
        plain.stage, plain.executors = base_of(self.stage, plain.config, self.resolved, self.mesh), {}
        return plain

    def rehearse(self, sequences: Sequences, objective: Objective) -> Tensor:
        """Run each kind of unit forward and backward by itself, on zeros like a message; no other stage takes part.
        The denominators of these sequences.
        """
        (batch,) = self.microbatches([sequences], objective)
        for shards in self.stage.trained:
            shards.open_gradients()
        for unit in kinds_of(self.stage):
            rehearse(unit, self.policy, batch, self._message(sequences))
        return batch.denominators

    def run(self, batches: Sequence[Microbatch], kinds: str = "FBIW") -> list[Made]:
        """What the model's end made of each microbatch, in order; nothing where it lies on another stage.

        Of the schedule's actions those of some kinds run: F alone is forward. Gradients are added up in the shards.
        """
        messages = [self._message(batch.sequences) for batch in batches]
        return self._executor(len(batches), kinds).run(batches, messages)

    def forward(self, sequences: Sequence[Sequences], objective: Objective) -> list[Made]:
        """The objective's numbers and the head's outputs of each microbatch, where the model ends: nothing trains."""
        return self.run(self.asked(sequences, objective), "F")

    def asked(self, sequences: Sequence[Sequences], objective: Objective) -> list[Microbatch]:
        """As `microbatches`, for a forward pass alone: without training's dropout and noise."""
        return self.microbatches([replace(one, draws=None) for one in sequences], objective)

    def outputs(self, sequences: Sequence[Sequences], objective: Objective) -> list[Outputs | Values]:
        """The head's of each microbatch of this data rank, where the model ends; empty on other stages."""
        made = self.forward(sequences, objective)
        return [one.outputs for one in made if one.outputs is not None]

    def outputs_on_first(self, sequences: Sequence[Sequences], objective: Objective) -> list[list[Tensor]] | None:
        """The same of every data rank, on rank 0; None elsewhere. For each data rank its microbatches' [n, B, S], in
        the order of the fields of `Outputs` or `Values`.
        """
        mine = [stacked(outputs) for outputs in self.outputs(sequences, objective)]
        count = objective.statistics.count if isinstance(objective, TokenObjective) else 1
        shapes = [(count, *one.tokens.shape) for one in sequences]
        exact = torch.promote_types(getattr(torch, self.resolved.compute_dtype), torch.float32)
        return bring_to_first(mine, shapes, exact, self.mesh)

    def microbatches(self, sequences: Sequence[Sequences], objective: Objective) -> list[Microbatch]:
        """This rank's positions of each, with the objective's denominators over all of them and all data ranks.

        Every data rank must have equally many (`padded` fills up). Raises ValueError for a length that the layout does
        not divide, and for columns that the objective wants and does not get.
        """
        for one in sequences:
            if self.mesh.has_head:  # where alone they are needed, and where another model's outputs are
                check_columns(one, objective.columns)
            if one.tokens.shape[1] % self.multiple:
                raise ValueError(
                    f"a microbatch of {one.tokens.shape[1]} positions: must be a multiple of {self.multiple}, that is "
                    f"of context {self.mesh.context.size} and tensor {self.mesh.tensor.size}"
                )
        denominators = self._denominators(sequences, objective)
        lengths = {one.tokens.shape[1] for one in sequences}
        angles = {length: self._angles(length) for length in lengths}
        return [self._microbatch(one, objective, denominators, angles[one.tokens.shape[1]]) for one in sequences]

    def _microbatch(
        self, one: Sequences, objective: Objective, denominators: Tensor, angles: tuple[Tensor, Angles]
    ) -> Microbatch:
        positions, turns = angles
        if one.positions is not None:
            given = one.positions[:, positions].to(turns.positions.dtype)
            turns = replace(turns, positions=given.t().contiguous())
        documents = None if one.documents is None else documents_of(one.documents, self.split.attending)
        tokens, labels, *drawn = (
            whole[:, positions].t().contiguous()
            for whole in (one.tokens, one.labels, *((one.draws.keys, one.draws.lengths) if one.draws else ()))
        )
        return Microbatch(
            tokens, labels, AttentionMetadata(turns, self.split, documents), positions,
            Draws(*drawn) if drawn else None, one, objective, denominators,
        )  # fmt: skip

    def _denominators(self, sequences: Sequence[Sequences], objective: Objective) -> Tensor:
        """The objective's, over all microbatches and data ranks; context ranks see the same sequences: one counts."""
        mine = torch.stack([objective.denominators(one) for one in sequences]).sum(0)
        if self.mesh.context.rank > 0:
            mine.zero_()
        return self.mesh.zero.all_reduce(mine, "loss.count").wait()

    def _angles(self, length: int) -> tuple[Tensor, Angles]:
        """This rank's positions [T], and how queries and keys turn there."""
        model, dtype = self.config.model, getattr(torch, self.resolved.compute_dtype)
        positions = self.split.positions(length, self.mesh.device)
        return positions, angles_of(positions.unsqueeze(1), length, model, dtype)

    def _message(self, sequences: Sequences) -> Message:
        """[T or T/tp, B, H]."""
        rows, length = sequences.tokens.shape
        here = self.region.length(length // self.mesh.context.size)
        size = (here, rows, self.config.model.hidden_size)
        return Message(size, getattr(torch, self.resolved.compute_dtype), self.mesh.device)

    def _executor(self, microbatches: int, kinds: str) -> Executor:
        """Planned once for each number of microbatches."""
        if (microbatches, kinds) not in self.executors:
            actions = self._proved(microbatches).actions[self.mesh.stage]
            actions = tuple(action for action in actions if action.kind in kinds)
            self.executors[microbatches, kinds] = Executor(
                self.stage, actions, self.policy, self.mesh.edges, self.recorder
            )
        return self.executors[microbatches, kinds]

    def _proved(self, microbatches: int) -> Schedule:
        """The step's schedule. Raises ScheduleError where it is incomplete, would stand still, or is another mesh's."""
        schedule, connected = self.schedule(microbatches), self.mesh.edges.placement
        if schedule.placement != connected:
            raise ScheduleError(f"schedule for {schedule.placement}, but the mesh was connected for {connected}")
        check(schedule, microbatches)
        return schedule
