"""What a rank of one stage runs and holds, in numbers: what the closed forms of traffic and of memory are made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch

from megatron_lite.config import Config, Resolved
from megatron_lite.config.alignment import aligned
from megatron_lite.parallel.pipeline.schedules import Action, Schedule


@dataclass(frozen=True)
class Unit:
    """What the forms need of a unit: its kind, the names of what it gathers, and whether it is run again."""

    kind: str  # embedding | block | head
    shards: tuple[str, ...]
    recompute: str = "none"


class StageSizes:
    """The units of a stage's chunks, the schedule's actions on it, and sizes that forms share."""

    def __init__(self, config: Config, resolved: Resolved, schedule: Schedule, stage: int):
        self.config, self.resolved, self.schedule, self.stage = config, resolved, schedule, stage
        self.actions = schedule.actions[stage]
        self.weights = self._weights()
        self.chunks = [self._units(schedule.placement.piece(stage, c)) for c in range(schedule.placement.chunks)]

    @property
    def element(self) -> int:
        """Bytes of a weight or an activation in a product."""
        return getattr(torch, self.resolved.compute_dtype).itemsize

    @property
    def exact(self) -> int:
        """Bytes of an element where sums are kept: float32, or float64 in a float64 run."""
        return max(4, self.element)

    @property
    def reduced(self) -> int:
        """Bytes of a gradient's element on the wire."""
        return getattr(torch, self.resolved.grad_reduce_dtype).itemsize

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch on this rank, those inside a tensor-parallel region."""
        train = self.config.train
        return train.sequence_length // self.resolved.context * train.micro_batch_size

    @property
    def outer(self) -> int:
        """Those outside a region."""
        return self.tokens // self.resolved.tensor if self.config.parallel.sequence else self.tokens

    @property
    def chunked(self) -> bool:
        """Whether the loss takes a microbatch's tokens a chunk at a time."""
        return self.config.kernels.loss_chunk is not None

    @property
    def chunk(self) -> int:
        """Tokens of each rank that go through the loss at a time."""
        chunk = self.config.kernels.loss_chunk
        return self.outer if chunk is None else min(chunk, self.outer)

    def loss_chunks(self) -> Iterator[tuple[int, int]]:
        """(tokens, how many chunks of so many) of a microbatch on this rank."""
        whole, rest = divmod(self.outer, self.chunk)
        yield self.chunk, whole
        if rest:
            yield rest, 1

    @property
    def region(self) -> int:
        """Bytes of one microbatch's activations inside a tensor-parallel region."""
        return self.tokens * self.config.model.hidden_size * self.element

    @property
    def sharding(self) -> int:
        """Ranks that share one set of shards."""
        parallel = self.config.parallel
        return 1 if parallel.zero_stage == 0 else (parallel.zero_group or self.resolved.zero_size)

    def shard_size(self, name: str) -> int:
        """Elements of a rank's shard, its tail included."""
        return aligned(self.shard_rows_size(name))

    def shard_rows_size(self, name: str) -> int:
        """Elements of a rank's rows of each weight, padded to divide."""
        return sum(ceil(rows / self.sharding) * size for rows, size in self.weights[name.split(".")[0]])

    def walk(self) -> Iterator[tuple[Action, Unit]]:
        """Every unit's turn in a step, in order."""
        return ((action, unit) for action in self.actions for unit in self.units_of(action))

    def units_of(self, action: Action) -> list[Unit]:
        """The units that an action runs, in its order."""
        units = self.chunks[action.chunk]
        return units if action.kind == "F" else units[::-1]

    def _weights(self) -> dict[str, list[tuple[int, int]]]:
        """(rows, row size) of the local weights behind each kind of shards."""
        model, tensor = self.config.model, self.resolved.tensor
        hidden, head_dim = model.hidden_size, self.resolved.head_dim
        queries = model.num_attention_heads // tensor * head_dim
        key_values = model.num_key_value_heads // tensor * head_dim
        feed = model.intermediate_size // tensor
        vocabulary = (self.resolved.padded_vocab_size // tensor, hidden)
        norm = (hidden, 1)
        block = [(queries + 2 * key_values, hidden), (hidden, queries), (2 * feed, hidden), (hidden, feed), norm, norm]
        return {"block": block, "embedding": [vocabulary], "head": [vocabulary, norm], "norm": [norm]}

    def _units(self, piece: int) -> list[Unit]:
        last = len(self.resolved.stage_layers) - 1
        first_layer = sum(self.resolved.stage_layers[:piece])
        layers = range(first_layer, first_layer + self.resolved.stage_layers[piece])
        units = [Unit("block", (f"block.{layer}",), self.resolved.recompute[layer]) for layer in layers]
        if piece == 0:
            units.insert(0, Unit("embedding", ("embedding",)))
        if piece == last:
            begin, end = self.schedule.placement.ends
            beside = self.config.model.tie_word_embeddings and begin == end
            units.append(Unit("head", ("norm", "embedding") if beside else ("head",)))
        return units
