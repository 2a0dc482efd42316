"""From a configuration and a place in the mesh to this rank's stage: which layers, which slices, which shards."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from megatron_lite.config import Config, Resolved
from megatron_lite.errors import UsageError
from megatron_lite.kernels.choice import Choice, Kernels, Work, choose
from megatron_lite.mesh import Mesh
from megatron_lite.model.initialization import fill_box
from megatron_lite.model.objective import Objective
from megatron_lite.model.parameters import Specification
from megatron_lite.model.transformer import Block, Embedding, Ending, Head
from megatron_lite.parallel.context import KINDS, ContextSplit
from megatron_lite.parallel.layout import Local
from megatron_lite.parallel.pipeline.stage import Stage, Unit
from megatron_lite.parallel.tensor import Region, ReplicatedRegion, SequenceRegion
from megatron_lite.parallel.zero import Numerics, ShardGroups, Shards, build_shards, policy


def region_of(config: Config, mesh: Mesh) -> Region:
    return SequenceRegion(mesh.tensor) if config.parallel.sequence else ReplicatedRegion(mesh.tensor)


def split_of(config: Config, mesh: Mesh) -> ContextSplit:
    return ContextSplit(mesh.context, KINDS[config.parallel.context_kind])


def numerics_of(resolved: Resolved, device: torch.device, kernels: Kernels) -> Numerics:
    return Numerics(
        compute=getattr(torch, resolved.compute_dtype),
        master=getattr(torch, resolved.master_dtype),
        reduce=getattr(torch, resolved.grad_reduce_dtype),
        device=device,
        kernels=kernels,
    )


def choice_of(config: Config, device: str) -> Choice:
    """The kernels that a configuration means on a device type. Raises UsageError for what cannot run there."""
    ring = config.parallel.context > 1 and config.parallel.context_kind == "ring"
    work = Work(device, config.train.dtype, config.model.head_dim, config.data.document_mask and ring)
    try:
        return choose(config.kernels.backend, config.kernels.attention, config.optim.backend, work)
    except ValueError as error:
        raise UsageError(str(error)) from None


def build_stage(config: Config, resolved: Resolved, mesh: Mesh, kernels: Kernels, objective: Objective) -> Stage:
    """The units of this rank's stage, with weights still zero."""
    model, region = config.model, region_of(config, mesh)
    rule = policy(config.parallel.zero_stage, config.parallel.regather)
    specification = Specification(model, config.train.initializer_range, mesh.tensor.size, mesh.tensor.rank)

    numerics = numerics_of(resolved, mesh.device, kernels)
    groups = ShardGroups(mesh.zero, mesh.sharding, mesh.replicas)

    def shard(name: str, locals_: Sequence[Local]) -> Shards:
        return build_shards(name, locals_, groups, rule, numerics)

    placement = mesh.edges.placement
    pieces = [placement.piece(mesh.stage, chunk) for chunk in range(placement.chunks)]
    chunks: list[list[Unit]] = [
        [
            Block(model, shard(f"block.{layer}", specification.block(layer)), region, resolved.recompute[layer])
            for layer in _layers(resolved.stage_layers, piece)
        ]
        for piece in pieces
    ]
    embedding: Shards | None = None
    if mesh.has_embedding:
        embedding = shard("embedding", specification.embedding())
        chunks[0].insert(0, Embedding(embedding, region))
    if mesh.has_head:
        tied = embedding if model.tie_word_embeddings else None
        shards = shard("head", specification.head(beside_embedding=mesh.has_embedding))
        ending = Ending(objective, split_of(config, mesh), config.kernels.loss_chunk)
        chunks[-1].append(Head(model, shards, region, tied, ending))
    distinct = {id(s): s for chunk in chunks for unit in chunk for s in unit.shards}
    return Stage(tuple(map(tuple, chunks)), tuple(distinct.values()))


def initialize(stage: Stage, seed: int) -> None:
    """Fill every shard by (seed, name, element): the same numbers on every layout. Meta tensors have none."""
    for shards in stage.shards:
        if shards.master.is_meta:
            continue
        for _, box in shards.layout.boxes(shards.sharding.rank):
            fill_box(shards.master, box, seed)
        shards.refresh()


def _layers(stage_layers: tuple[int, ...], piece: int) -> range:
    ends = list(accumulate(stage_layers))
    return range(ends[piece] - stage_layers[piece], ends[piece])
