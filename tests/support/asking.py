"""A small model of which nothing is trained, on this rank of a layout: what generation and scoring ask."""

import torch
from support.layouts import Layout, stir

from megatron_lite.config import resolve
from megatron_lite.inference.model import LanguageModel, language_model_of
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model, schedule_of
from megatron_lite.parallel.collectives import Recorder


def build_to_ask(layout: Layout, recorder: Recorder | None = None, length: int = 16) -> LanguageModel:
    """For sequences of `length` positions."""
    config = layout.config(sequence_length=length)
    resolved = resolve(config, layout.world)
    placement = schedule_of(config, resolved, resolved.microbatches).placement
    mesh = build_mesh(MeshShape.of(resolved), torch.device("cpu"), placement, recorder)
    model = Model(config, resolved, mesh, recorder=recorder, trainable=NOTHING)
    if layout.lora is not None:
        stir(model)
    return language_model_of(model)
