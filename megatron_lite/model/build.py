"""From a configuration and a place in the mesh to this rank's stage: which layers, which slices, which shards."""

from collections.abc import Mapping
from itertools import accumulate

import torch

from megatron_lite.config import Config, Resolved
from megatron_lite.errors import UsageError
from megatron_lite.kernels.choice import Choice, Kernels, Work, choose
from megatron_lite.mesh import Mesh
from megatron_lite.model.freezing import Patterns, check_patterns, divided
from megatron_lite.model.heads import Ending, Head, ScalarHead
from megatron_lite.model.initialization import fill_box
from megatron_lite.model.parameters import Specification, is_adapter
from megatron_lite.model.transformer import Block, Embedding
from megatron_lite.parallel.collectives import alone
from megatron_lite.parallel.context import KINDS, ContextSplit
from megatron_lite.parallel.layout import Local, ShardLayout
from megatron_lite.parallel.pipeline.stage import Stage, Unit
from megatron_lite.parallel.tensor import Region, ReplicatedRegion, SequenceRegion
from megatron_lite.parallel.weights import Numerics
from megatron_lite.parallel.zero import Shards, TrainedShards


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


def build_stage(config: Config, resolved: Resolved, mesh: Mesh, kernels: Kernels, trainable: Patterns) -> Stage:
    """The units of this rank's stage, with weights still zero; those that match a pattern of `trainable` are trained.

    Raises UsageError for patterns that do not fit the model.
    """
    weights = _Weights(config, resolved, mesh, kernels, trainable)
    return build_units(config, resolved, mesh, weights.of_stage(), region_of(config, mesh), split_of(config, mesh))


def undivided(stage: Stage, config: Config, resolved: Resolved, mesh: Mesh) -> Stage:
    """A stage's weights again, in units that divide no positions, since one new token has none to divide.

    Between regions every tensor rank has all activations; each context rank is a replica with sequences of its own.
    """
    region, split = ReplicatedRegion(mesh.tensor), ContextSplit(alone(mesh.rank), "ring")
    return build_units(config, resolved, mesh, stage.weights, region, split)


def base_of(stage: Stage, config: Config, resolved: Resolved, mesh: Mesh) -> Stage:
    """A stage's weights again but for adapters; `config` has none."""
    weights = {name: tuple(s for s in its if not _adapts(s)) for name, its in stage.weights.items()}
    return build_units(config, resolved, mesh, weights, region_of(config, mesh), split_of(config, mesh))


def _adapts(shards: Shards) -> bool:
    """They hold adapters alone, or none."""
    return is_adapter(shards.layout.locals[0].packs[0].logical.name)


class _Weights:
    """Makes the shards of a stage's units."""

    def __init__(self, config: Config, resolved: Resolved, mesh: Mesh, kernels: Kernels, trainable: Patterns):
        self.config, self.resolved, self.mesh, self.trainable = config, resolved, mesh, trainable
        tensor = mesh.tensor
        self.specification = Specification(
            config.model, config.train.initializer_range, tensor.size, tensor.rank, config.lora
        )
        self.numerics = numerics_of(resolved, mesh.device, kernels)
        check_patterns(trainable, list(self.specification.parameters()))

    def of_stage(self) -> dict[str, tuple[Shards, ...]]:
        """By unit: embedding, block.N, head; a tied head on the embedding's stage has the embedding's too."""
        mesh, found = self.mesh, {}
        if mesh.has_embedding:
            found["embedding"] = self._shards("embedding", self.specification.embedding())
        for layers in layers_of_chunks(self.resolved, mesh):
            found |= {f"block.{n}": self._of_block(n) for n in layers}
        if mesh.has_head:
            own = self._shards("head", self.specification.head(beside_embedding=mesh.has_embedding))
            tied = found["embedding"] if self.config.model.tie_word_embeddings and mesh.has_embedding else ()
            found["head"] = (*own, *tied)
        return found

    def _of_block(self, layer: int) -> tuple[Shards, ...]:
        """Its own, and those of its adapter."""
        name, adapter = f"block.{layer}", self.specification.adapter(layer)
        own = self._shards(name, self.specification.block(layer))
        return own + (self._shards(f"{name}.adapter", adapter) if adapter else ())

    def _shards(self, name: str, locals_: list[Local]) -> tuple[Shards, ...]:
        """Those that are trained, those that are frozen, or both."""
        trained, frozen = divided(locals_, self.trainable)
        shards = [self._make(TrainedShards, name, trained)] if trained else []
        if frozen:
            shards.append(self._make(Shards, f"{name}.frozen" if trained else name, frozen))
        return tuple(shards)

    def _make(self, kind: type[Shards], name: str, locals_: list[Local]) -> Shards:
        sharding, replicas = self.mesh.sharding, self.mesh.replicas
        return kind(name, ShardLayout(tuple(locals_), sharding.size), sharding, replicas, self.numerics)


def build_units(config: Config, resolved: Resolved, mesh: Mesh, weights: Mapping[str, tuple[Shards, ...]],
                region: Region, split: ContextSplit) -> Stage:  # fmt: skip
    """A stage's units around weights that there are, by unit's name: they may stand in several stages at once."""
    model = config.model
    chunks: list[list[Unit]] = [
        [Block(model, weights[f"block.{n}"], region, resolved.recompute[n], config.lora) for n in layers]
        for layers in layers_of_chunks(resolved, mesh)
    ]
    if mesh.has_embedding:
        chunks[0].insert(0, Embedding(weights["embedding"], region, config.train.neftune_alpha))
    if mesh.has_head:
        head = Head if model.head == "logits" else ScalarHead
        chunks[-1].append(head(model, weights["head"], Ending(region, split, config.kernels.loss_chunk)))
    return Stage(tuple(map(tuple, chunks)), weights)


def layers_of_chunks(resolved: Resolved, mesh: Mesh) -> list[range]:
    """The layers of each chunk of this rank's stage."""
    placement, ends = mesh.edges.placement, list(accumulate(resolved.stage_layers))
    numbers = [placement.virtual_stage(mesh.stage, chunk) for chunk in range(placement.chunks)]
    return [range(ends[number] - resolved.stage_layers[number], ends[number]) for number in numbers]


def initialize(stage: Stage, seed: int) -> None:
    """Fill every shard by (seed, name, element): the same numbers on every layout. Meta tensors have none."""
    for shards in stage.shards:
        if shards.values.is_meta:
            continue
        for _, box in shards.layout.boxes(shards.sharding.rank):
            fill_box(shards.values, box, seed, shards.numerics.master)
        shards.refresh()
