"""A checkpoint of ours as a plain function of token ids, in the units that train and generate."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lite.checkpoint import load_weights, open_checkpoint
from megatron_lite.config import config_from_tree, resolve
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange.verify import Logits
from megatron_lite.kernels.choice import kernels_of
from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.build import build_stage, choice_of, split_of
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.heads import Head
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.operations import AttentionMetadata, angles_of
from megatron_lite.model.sequences import Sequences


def logits_of(path: Path, dtype: str = "float32") -> Logits:
    """From ids [T] to logits [T, V], computed in `dtype` on one process; V is without padding. Raises DataError."""
    mesh = build_mesh(MeshShape(), torch.device("cpu"))
    checkpoint = open_checkpoint(path, mesh)
    tree = checkpoint.index.config
    own = {"parallel": {"zero_regather": "step"}, "kernels": {}, "train": {**tree["train"], "dtype": dtype}}
    try:
        config = config_from_tree({**tree, **own})
    except UsageError as error:
        raise DataError(f"{checkpoint}: its configuration cannot be used here: {error}") from None
    stage = build_stage(config, resolve(config, 1), mesh, kernels_of(choice_of(config, "cpu")), NOTHING)
    load_weights(checkpoint, config.model, stage, mesh)
    for shards in stage.shards:
        shards.wait_gather()
    *units, head = stage.units
    assert isinstance(head, Head)  # an exchanged model ends in one
    split = split_of(config, mesh)

    @torch.no_grad()
    def logits(ids: Tensor) -> Tensor:
        positions, row = torch.arange(len(ids)), ids[None]
        angles = angles_of(positions[:, None], len(ids), config.model, getattr(torch, dtype))
        seen = Sequences(row, row, config.model.vocab_size)
        objective = CrossEntropy()
        batch = Microbatch(
            row.t().contiguous(), row.t().contiguous(), AttentionMetadata(angles, split), positions, seen, objective,
            objective.denominators(seen),
        )  # fmt: skip
        x: Any = None
        for unit in units:
            x = unit.forward(x, batch)
        return head.logits(x)[:, 0, : config.model.vocab_size]

    return logits
