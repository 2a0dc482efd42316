"""A trainer takes a schedule only once it is proved, and only on a mesh that was connected for it."""

from dataclasses import replace

import pytest
import torch
from support.layouts import Layout

from megatron_lite.config import resolve
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.model import Model
from megatron_lite.model.sequences import Sequences
from megatron_lite.parallel.pipeline.checker import ScheduleError
from megatron_lite.parallel.pipeline.schedules import Placement, Schedule, one_f_one_b
from megatron_lite.training.boundaries import microbatches_of
from megatron_lite.training.step import Trainer


def trainer_with(schedule) -> Trainer:
    config = Layout().config()
    return Trainer(Model(config, resolve(config, 1), build_mesh(MeshShape(), torch.device("cpu")), schedule=schedule))


def zeros(trainer: Trainer) -> list[Sequences]:
    size = (trainer.resolved.local_batch_size, trainer.config.train.sequence_length + 1)
    return microbatches_of(torch.zeros(size, dtype=torch.int64), trainer.config)


def test_a_schedule_without_a_backward_is_refused_before_it_runs():
    def without_last(microbatches: int) -> Schedule:
        whole = one_f_one_b(1, 1, microbatches)
        return replace(whole, actions=(whole.actions[0][:-1],))

    trainer = trainer_with(without_last)
    with pytest.raises(ScheduleError, match="stage 0: "):
        trainer.gradients(zeros(trainer))
    assert trainer.model.executors == {}


def test_a_schedule_for_other_pieces_than_the_mesh_was_connected_for_is_refused():
    trainer = trainer_with(lambda microbatches: one_f_one_b(1, 2, microbatches))
    with pytest.raises(ScheduleError, match=r"schedule for Placement\(stages=1, chunks=2.*, but the mesh .*chunks=1"):
        trainer.gradients(zeros(trainer))


def test_the_default_schedule_is_taken():
    trainer = trainer_with(None)
    assert trainer.mesh.edges.placement == Placement(1)
    trainer.gradients(zeros(trainer))
    assert len(trainer.model.executors) == 1
