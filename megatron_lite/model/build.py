"""From a configuration and a place in the mesh to this rank's stage: which layers, which slices, which shards."""

from itertools import accumulate

import torch

from megatron_lite.config import Config, Resolved
from megatron_lite.mesh import Mesh
from megatron_lite.model.initialization import fill_box
from megatron_lite.model.parameters import Specification
from megatron_lite.model.transformer import Block, Embedding, Head
from megatron_lite.parallel.pipeline.stage import Stage, Unit
from megatron_lite.parallel.tensor import Region, ReplicatedRegion, SequenceRegion
from megatron_lite.parallel.zero import Precision, Shards, build_shards, policy


def region_of(config: Config, mesh: Mesh) -> Region:
    return SequenceRegion(mesh.tensor) if config.parallel.sequence else ReplicatedRegion(mesh.tensor)


def precision_of(resolved: Resolved) -> Precision:
    return Precision(
        compute=getattr(torch, resolved.compute_dtype),
        master=getattr(torch, resolved.master_dtype),
        reduce=getattr(torch, resolved.grad_reduce_dtype),
    )


def build_stage(config: Config, resolved: Resolved, mesh: Mesh) -> Stage:
    """The units of this rank's stage, with weights still zero."""
    model, region = config.model, region_of(config, mesh)
    rule = policy(config.parallel.zero_stage, config.parallel.zero_regather)
    specification = Specification(model, config.train.initializer_range, mesh.tensor.size, mesh.tensor.rank)

    def shard(name: str, locals_) -> Shards:
        return build_shards(name, locals_, mesh.zero, rule, precision_of(resolved), mesh.device)

    units: list[Unit] = []
    embedding: Shards | None = None
    if mesh.first_stage:
        embedding = shard("embedding", specification.embedding())
        units.append(Embedding(embedding, region))
    for layer in _layers(resolved.stage_layers, mesh.stage):
        shards = shard(f"block.{layer}", specification.block(layer))
        units.append(Block(model, shards, region, resolved.recompute[layer]))
    if mesh.last_stage:
        tied = embedding if model.tie_word_embeddings else None
        shards = shard("head", specification.head(first_stage=mesh.first_stage))
        units.append(Head(model, shards, region, tied, config.train.z_loss))
    distinct = {id(s): s for unit in units for s in unit.shards}
    return Stage(tuple(units), tuple(distinct.values()))


def initialize(stage: Stage, seed: int) -> None:
    """Fill every shard by (seed, name, element): the same numbers on every layout."""
    for shards in stage.shards:
        for _, box in shards.layout.boxes(shards.sharding.rank):
            fill_box(shards.master, box, seed)
        shards.refresh()


def _layers(stage_layers: tuple[int, ...], stage: int) -> range:
    ends = list(accumulate(stage_layers))
    return range(ends[stage] - stage_layers[stage], ends[stage])
