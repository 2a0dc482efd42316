"""A low-rank adapter beside a frozen block (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + B A x for the packed
projection of queries, keys and values, and for the one after attention. It shows that a unit may have shards of both
kinds, and what weights of an adapter are to tensor parallelism:

    qkv   A [r, H] the same on every rank, gradient in parts    B this rank's rows
    o     A this rank's columns                                 B [H, r] the same on every rank, gradient in parts
"""

from dataclasses import replace

from torch import Tensor

from megatron_lite.model.build import numerics_of
from megatron_lite.model.model import Model
from megatron_lite.model.operations import add_norm, norm_and_residual, swiglu
from megatron_lite.model.parameters import Specification
from megatron_lite.model.transformer import Block
from megatron_lite.parallel.layout import Local, Logical, Packed, ShardLayout
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.tensor import enter_linear, inside_linear, linear_leave
from megatron_lite.parallel.zero import Shards, TrainedShards, weights_by_name

RANK = 3


def adapter_of(specification: Specification, layer: int) -> list[Local]:
    """As this tensor rank holds it, whole matrices first by name of the weight that they adapt."""
    qkv, o, *_ = specification.block(layer)
    hidden, prefix = qkv.shape[1], f"model.layers.{layer}.self_attn"

    def matrix(name: str, rows: int, columns: int) -> Logical:
        return Logical(f"{prefix}.{name}.weight", (rows, columns), 0.3, True)

    shared = matrix("qkv.lora_A", RANK, hidden)
    rows = [replace(part, logical=matrix(_name(part) + ".lora_B", part.logical.shape[0], RANK)) for part in qkv.packs]
    (own,) = o.packs
    narrow = matrix("o_proj.lora_A", RANK, own.logical.shape[1])
    wide = matrix("o_proj.lora_B", hidden, RANK)
    return [
        Local("qkv_a", shared.shape, (Packed(shared, 0, RANK, (0, 0)),), replicated=True, inside=True),
        Local("qkv_b", (qkv.shape[0], RANK), tuple(rows)),
        Local("o_a", (RANK, o.shape[1]), (Packed(narrow, 0, RANK, own.start),)),
        Local("o_b", wide.shape, (Packed(wide, 0, hidden, (0, 0)),), replicated=True, inside=True),
    ]


def _name(part: Packed) -> str:
    """q_proj, k_proj or v_proj."""
    return part.logical.name.split(".")[-2]


class AdaptedBlock(Block):
    def __init__(self, block: Block, adapter: Shards):
        super().__init__(block.model, (*block.shards, adapter), block.region, block.recompute)
        weights = weights_by_name(self.shards)
        self.qkv_a, self.qkv_b, self.o_a, self.o_b = (weights[name] for name in ("qkv_a", "qkv_b", "o_a", "o_b"))

    def transform(self, x, rotate, attention) -> Tensor:
        region, eps = self.region, self.model.rms_norm_eps
        h, x = norm_and_residual(x, self.attention_norm, eps)
        narrow = enter_linear(h, self.qkv_a, region, "adapter.enter")
        h = rotate(enter_linear(h, self.qkv, region, "attention.enter") + inside_linear(narrow, self.qkv_b))
        h = attention(h)
        narrow = linear_leave(h, lambda x: inside_linear(x, self.o_a), self.o_b, region, "adapter.leave")
        h = linear_leave(h, lambda x: x, self.o, region, "attention.leave") + narrow
        h, x = add_norm(h, x, self.mlp_norm, eps)
        h = enter_linear(h, self.gate_up, region, "mlp.enter")
        return self.leave(h, lambda x: swiglu(x, self.kernels), self.down, region, "mlp.leave").add_(x)


def adapted(model: Model) -> Stage:
    """The stage of a frozen model with an adapter beside each block."""
    config, mesh = model.config, model.mesh
    specification = Specification(config.model, config.train.initializer_range, mesh.tensor.size, mesh.tensor.rank)
    numerics = numerics_of(model.resolved, mesh.device, model.stage.shards[0].numerics.kernels)

    def with_adapter(unit):
        if not isinstance(unit, Block):
            return unit
        layer = int(unit.shards[0].name.split(".")[1])
        layout = ShardLayout(tuple(adapter_of(specification, layer)), mesh.sharding.size)
        return AdaptedBlock(unit, TrainedShards(f"adapter.{layer}", layout, mesh.sharding, mesh.replicas, numerics))

    chunks = tuple(tuple(with_adapter(unit) for unit in chunk) for chunk in model.stage.chunks)
    return Stage(chunks, {unit.shards[0].name: unit.shards for chunk in chunks for unit in chunk})
