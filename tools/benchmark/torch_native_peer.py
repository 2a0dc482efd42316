"""A peer to compare with: the same model in PyTorch's own parallelism.

FSDP2 (fully_shard) x DTensor tensor parallelism (parallelize_module) x torch.distributed.pipelining (1F1B), float32 on
gloo, AdamW without clipping. With a pipeline PyTorch keeps gathered weights and unreduced gradients until the last
microbatch, which is our `zero_regather: step`; without one it gathers and reduces for each microbatch, or with
`--regather step` does the same as with one.

    python tools/benchmark/torch_native_peer.py
    torchrun --standalone --nproc-per-node 8 tools/benchmark/torch_native_peer.py --tensor 2 --pipeline 2 --data 2
"""

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from workload import Workload, add_arguments, measure, print_result, set_threads, workload_of

AXES = ("pipeline", "data", "tensor")


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, heads, T, D) by angles (T, D / 2); channel i pairs with channel i + D / 2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        self.head_dim = w.hidden_size // w.num_attention_heads
        self.q = linear(w.hidden_size, w.hidden_size)
        self.k = linear(w.num_key_value_heads * self.head_dim, w.hidden_size)
        self.v = linear(w.num_key_value_heads * self.head_dim, w.hidden_size)
        self.o = linear(w.hidden_size, w.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (p(x).view(batch, length, -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        self.gate = linear(w.intermediate_size, w.hidden_size)
        self.up = linear(w.intermediate_size, w.hidden_size)
        self.down = linear(w.hidden_size, w.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(w.hidden_size), nn.RMSNorm(w.hidden_size)
        self.attention, self.feed_forward = Attention(w), FeedForward(w)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Stage(nn.Module):
    """One pipeline rank's share of the model: tokens or activations in, activations or logits out."""

    def __init__(self, w: Workload, stage: int):
        super().__init__()
        share = w.num_hidden_layers // w.pipeline
        layers = range(stage * share, (stage + 1) * share)
        first, last = stage == 0, stage == w.pipeline - 1
        self.embedding = initialized(nn.Embedding(w.vocab_size, w.hidden_size), 1000) if first else None
        self.blocks = nn.ModuleList(initialized(Block(w), layer) for layer in layers)
        self.norm = nn.RMSNorm(w.hidden_size) if last else None
        self.head = initialized(linear(w.vocab_size, w.hidden_size), 1001) if last else None
        half = w.hidden_size // w.num_attention_heads // 2
        angles = torch.outer(torch.arange(w.sequence_length).float(), 10000 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return x if self.head is None else self.head(self.norm(x))


def initialized(module: nn.Module, seed: int) -> nn.Module:
    """Fill the matrices from the seed alone, so that every layout starts from the same weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return module


def parallelize(model: Stage, w: Workload, mesh: DeviceMesh, holds: bool) -> None:
    """Split the matrices over the tensor axis, then shard each block and the rest over the data axis."""
    if w.tensor > 1:
        columns, rows = ColwiseParallel(), RowwiseParallel()
        plan = {f"attention.{name}": columns for name in "qkv"} | {"attention.o": rows}
        plan |= {"feed_forward.gate": columns, "feed_forward.up": columns, "feed_forward.down": rows}
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], plan)
        ends = {
            "embedding": RowwiseParallel(input_layouts=Replicate()),
            "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        }
        present = {name: style for name, style in ends.items() if getattr(model, name) is not None}
        parallelize_module(model, mesh["tensor"], present)
    if w.data > 1:
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data"], reshard_after_forward=not holds)
        fully_shard(model, mesh=mesh["data"], reshard_after_forward=not holds)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def value_of(loss: Tensor) -> float:
    return (loss.full_tensor() if isinstance(loss, DTensor) else loss).item()


class Trainer:
    """The model of this rank with its optimizer; `step` trains on one batch.

    `holds`: without a pipeline, keep gathered weights and unreduced gradients for the step.
    """

    def __init__(self, w: Workload, mesh: DeviceMesh | None, holds: bool):
        self.w, self.holds = w, holds and w.data > 1
        self.stage = 0 if mesh is None else mesh["pipeline"].get_local_rank()
        self.model = Stage(w, self.stage)
        if mesh is not None:
            parallelize(self.model, w, mesh, self.holds)
        # The fused update of many tensors at once does not take plain tensors and DTensors in one list.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=w.tensor == 1
        )
        self.schedule = None
        if w.pipeline > 1:
            group = mesh["pipeline"].get_group()
            stage = PipelineStage(self.model, self.stage, w.pipeline, torch.device("cpu"), group=group)
            self.schedule = Schedule1F1B(stage, n_microbatches=w.accumulation, loss_fn=loss_of)

    def step(self, tokens: Tensor) -> float:
        """Train on tokens [batch, T + 1]; the mean loss, or 0 where the pipeline does not end."""
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.optimizer.zero_grad()
        with loss_parallel() if self.w.tensor > 1 else nullcontext():
            loss = self.run(inputs, targets) if self.schedule is None else self.run_pipeline(inputs, targets)
        self.optimizer.step()
        return loss

    def run(self, inputs: Tensor, targets: Tensor) -> float:
        total, size = 0.0, self.w.micro_batch_size
        for number, (x, y) in enumerate(zip(inputs.split(size), targets.split(size), strict=True), start=1):
            if self.holds:
                last = number == self.w.accumulation
                self.model.set_reshard_after_backward(last)
                self.model.set_requires_gradient_sync(last)
            loss = loss_of(self.model(x), y) / self.w.accumulation
            loss.backward()
            total += value_of(loss)
        return total

    def run_pipeline(self, inputs: Tensor, targets: Tensor) -> float:
        losses: list[Tensor] = []
        if self.stage == 0:
            self.schedule.step(inputs)
        elif self.stage == self.w.pipeline - 1:
            self.schedule.step(target=targets, losses=losses)
        else:
            self.schedule.step()
        return sum(map(value_of, losses)) / self.w.accumulation


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of the same model in PyTorch's own parallelism.")
    add_arguments(parser)
    parser.add_argument("--regather", choices=("microbatch", "step"), default="microbatch")
    options = parser.parse_args()
    w, regather = workload_of(options), "step" if options.pipeline > 1 else options.regather
    set_threads(w)
    mesh = None
    if w.world > 1:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (w.pipeline, w.data, w.tensor), mesh_dim_names=AXES)
    data_rank = 0 if mesh is None else mesh["data"].get_local_rank()
    timing = measure(w, data_rank, Trainer(w, mesh, holds=regather == "step").step)
    if mesh is not None:
        mean = torch.tensor(timing.losses)
        dist.all_reduce(mean, group=mesh["data"].get_group())
        timing = replace(timing, losses=(mean / w.data).tolist())
    if mesh is None or dist.get_rank() == w.world - 1:
        print_result(w, timing, regather)
    if mesh is not None:
        dist.destroy_process_group()
        # About one exit in eight aborts when the interpreter takes DTensor's threads down itself.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
