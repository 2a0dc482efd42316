"""Small saved models for the generation tests."""

from pathlib import Path

import torch
from support.layouts import Layout, assemble, build_trainer, owned_blocks
from torch import Tensor

from megatron_lite.checkpoint import Checkpoint, open_checkpoint, save
from megatron_lite.config import Config
from megatron_lite.inference.model import LanguageModel
from megatron_lite.inference.opening import load_model
from megatron_lite.mesh import MeshShape, build_mesh

ONE = build_mesh(MeshShape(), torch.device("cpu"))


def saved_model(directory: Path, layout: Layout, config: Config | None = None) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A checkpoint of initial weights, and these as logical tensors."""
    trainer = build_trainer(layout, config=config)
    save(directory, trainer, 1, 12)
    weights = assemble([owned_blocks(trainer, "master")])
    return open_checkpoint(directory, ONE), {name: torch.from_numpy(w) for name, w in weights.items()}


def loaded(checkpoint: Checkpoint) -> LanguageModel:
    return load_model(checkpoint, ONE)
