"""What a rank of one stage runs and holds, in numbers: what the closed forms of traffic and of memory are made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import ceil

import torch

from megatron_lite.config import AlignedConfig, Config, Resolved
from megatron_lite.config.rounding import aligned
from megatron_lite.model.freezing import Patterns, trained_by
from megatron_lite.parallel.pipeline.schedules import Action, Schedule
from megatron_lite.parallel.zero import Policy, policy_of

# The parameters that each local weight is made of, by which `train.trainable` names it. The forms' own table, beside
# the one of model/parameters.py: a name that is wrong there is found, where one read from there would be wrong twice.
LOGICAL = {
    "embed": ("model.embed_tokens.weight",),
    "qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv"),
    "o": ("model.layers.{}.self_attn.o_proj.weight",),
    "gate_up": tuple(f"model.layers.{{}}.mlp.{part}_proj.weight" for part in ("gate", "up")),
    "down": ("model.layers.{}.mlp.down_proj.weight",),
    **{name: (f"model.layers.{{}}.self_attn.{name}.weight",) for name in ("q_norm", "k_norm")},
    "attention_norm": ("model.layers.{}.input_layernorm.weight",),
    "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight",),
    "norm": ("model.norm.weight",),
    "lm_head": ("lm_head.weight",),
    "score": ("score.weight",),
}
# What an adapter may adapt, by the block's product that it is part of: its weights are A and B of each.
ENTERING = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
LEAVING = {"o": ("o_proj",), "down": ("down_proj",)}
TARGETS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
           "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}  # fmt: skip
LOGICAL |= {
    f"{target}.lora_{part}": (f"model.layers.{{}}.{module}.{target}.lora_{part}.weight",)
    for target, module in TARGETS.items()
    for part in ("A", "B")
}
BLOCK = ("qkv", "o", "gate_up", "down", "attention_norm", "mlp_norm")
HEAD_NORMS = ("q_norm", "k_norm")  # the same on every tensor rank, each of which uses them on its own heads
# The same on every tensor rank, between regions.
REPLICATED = (
    *("attention_norm", "mlp_norm", "norm", "score"),
    *(f"{target}.lora_A" for targets in ENTERING.values() for target in targets),
    *(f"{target}.lora_B" for targets in LEAVING.values() for target in targets),
)


@dataclass(frozen=True)
class Numbers:
    """How many an objective gives: numbers that add up, numbers whose largest counts, and what it divides by.

    two_passes  whether what a token counts depends on the outputs, so that a head in chunks makes its logits again
    """

    sums: int
    maxima: int
    denominators: int
    two_passes: bool = False


CROSS_ENTROPY = Numbers(sums=2, maxima=0, denominators=1)
OF_ALGORITHM = {
    "sft": CROSS_ENTROPY,
    "reward": Numbers(sums=5, maxima=0, denominators=1),
    "dpo": Numbers(sums=6, maxima=0, denominators=2, two_passes=True),
}


def numbers_of(config: Config) -> Numbers:
    """Of what a configuration's run descends."""
    return OF_ALGORITHM[config.algorithm] if isinstance(config, AlignedConfig) else CROSS_ENTROPY


@dataclass(frozen=True)
class LocalWeight:
    """A weight as one tensor rank holds it."""

    name: str
    rows: int
    columns: int
    trained: bool

    @property
    def elements(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class ShardSizes:
    """Weights that a unit gathers at once: all of them are trained, or none is."""

    name: str
    weights: tuple[LocalWeight, ...]

    @property
    def trained(self) -> bool:
        return self.weights[0].trained

    @property
    def adapts(self) -> bool:
        """Whether they are an adapter's, whose gradients no split backward puts off."""
        return ".lora_" in self.weights[0].name

    @property
    def elements(self) -> int:
        return sum(weight.elements for weight in self.weights)


@dataclass(frozen=True)
class Unit:
    """What the forms need of a unit: its kind, the shards it gathers, and whether it is run again."""

    kind: str  # embedding | block | head | scalar_head
    shards: tuple[ShardSizes, ...]
    recompute: str = "none"

    @property
    def ends(self) -> bool:
        """Whether it is the model's last."""
        return self.kind in ("head", "scalar_head")

    @property
    def trained(self) -> tuple[ShardSizes, ...]:
        return tuple(shards for shards in self.shards if shards.trained)

    @cached_property
    def weights(self) -> dict[str, LocalWeight]:
        return {weight.name: weight for shards in self.shards for weight in shards.weights}

    @property
    def projection(self) -> LocalWeight:
        """What a head makes its numbers with."""
        return next(self.weights[name] for name in ("lm_head", "embed", "score") if name in self.weights)

    def trains(self, name: str) -> bool:
        return self.weights[name].trained


def forward_only(schedule: Schedule) -> Schedule:
    """What of a schedule a model runs that is only asked."""
    return replace(schedule, actions=tuple(tuple(a for a in row if a.kind == "F") for row in schedule.actions))


class StageSizes:
    """The units of a stage's chunks, the schedule's actions on it, and sizes that forms share.

    `trainable` are the patterns of what is trained, `numbers` the objective's (None: the configuration's). A schedule
    may have forward actions alone, as those of a model that is only asked.
    """

    def __init__(
        self,
        config: Config,
        resolved: Resolved,
        schedule: Schedule,
        stage: int,
        trainable: Patterns | None = None,
        numbers: Numbers | None = None,
    ):
        self.numbers = numbers or numbers_of(config)
        self.config, self.resolved, self.schedule, self.stage = config, resolved, schedule, stage
        self.patterns = trained_by(config) if trainable is None else trainable
        self.actions = schedule.actions[stage]
        self.chunks = [
            self._units(schedule.placement.virtual_stage(stage, c)) for c in range(schedule.placement.chunks)
        ]

    @property
    def units(self) -> list[Unit]:
        """Of all chunks."""
        return [unit for chunk in self.chunks for unit in chunk]

    @property
    def shards(self) -> list[ShardSizes]:
        """The distinct ones: a tied head has the embedding's, too."""
        return list(dict.fromkeys(shards for unit in self.units for shards in unit.shards))

    @property
    def trained(self) -> list[ShardSizes]:
        return [shards for shards in self.shards if shards.trained]

    @property
    def goes_back(self) -> bool:
        """Whether the schedule has a backward."""
        return any(action.kind != "F" for action in self.actions)

    @property
    def element_bytes(self) -> int:
        """Of a weight or an activation in a product."""
        return getattr(torch, self.resolved.compute_dtype).itemsize

    @property
    def exact_bytes(self) -> int:
        """Of an element where sums are kept: float32, or float64 in a float64 run."""
        return max(4, self.element_bytes)

    @property
    def reduced_bytes(self) -> int:
        """Of a gradient's element on the wire."""
        return getattr(torch, self.resolved.grad_reduce_dtype).itemsize

    @property
    def region_tokens(self) -> int:
        """Tokens of a microbatch on this rank, those inside a tensor-parallel region."""
        train = self.config.train
        return train.sequence_length // self.resolved.context * train.micro_batch_size

    @property
    def outer_tokens(self) -> int:
        """Those outside a region."""
        return self.region_tokens // self.resolved.tensor if self.config.parallel.sequence else self.region_tokens

    @property
    def chunked(self) -> bool:
        """Whether the loss takes a microbatch's tokens a chunk at a time."""
        return self.config.kernels.loss_chunk is not None

    @property
    def chunk_tokens(self) -> int:
        """Tokens of each rank that go through the loss at a time."""
        chunk = self.config.kernels.loss_chunk
        return self.outer_tokens if chunk is None else min(chunk, self.outer_tokens)

    def loss_chunks(self) -> Iterator[tuple[int, int]]:
        """(tokens, how many chunks of so many) of a microbatch on this rank."""
        whole, rest = divmod(self.outer_tokens, self.chunk_tokens)
        yield self.chunk_tokens, whole
        if rest:
            yield rest, 1

    @property
    def region_bytes(self) -> int:
        """One microbatch's activations inside a tensor-parallel region."""
        return self.region_tokens * self.config.model.hidden_size * self.element_bytes

    @cached_property
    def policy(self) -> Policy:
        """What ZeRO's table says of the configuration. Raises UsageError where `zero_regather` is undecided."""
        return policy_of(self.config.parallel.zero_stage, self.config.parallel.regather)

    @property
    def sharding(self) -> int:
        """Ranks that share one set of shards."""
        return self.resolved.zero_group

    def shard_size(self, shards: ShardSizes) -> int:
        """Elements of a rank's shard, its tail included."""
        return aligned(self.rows_size(shards.weights))

    def gathered_size(self, shards: ShardSizes) -> int:
        """Elements of all ranks' shards."""
        return self.sharding * self.shard_size(shards)

    def rows_size(self, weights: Iterable[LocalWeight]) -> int:
        """Elements of a rank's rows of each weight, padded to divide; where rows are fewer than ranks, of its pieces of
        rows.
        """
        return sum(self._rank_size(weight.rows, weight.columns) for weight in weights)

    def _rank_size(self, rows: int, columns: int) -> int:
        pieces = 1
        while rows * pieces < self.sharding and pieces < columns:
            pieces = next(n for n in range(pieces + 1, columns + 1) if columns % n == 0)
        return ceil(rows * pieces / self.sharding) * (columns // pieces)

    def narrow(self, product: str) -> int:
        """Columns between A and B, of all adapters of a block's product."""
        lora = self.config.lora
        adapted = {**ENTERING, **LEAVING}[product]
        return 0 if lora is None else lora.rank * sum(target in adapted for target in lora.targets)

    def walk(self) -> Iterator[tuple[Action, Unit]]:
        """Every unit's turn in a step, in order."""
        return ((action, unit) for action in self.actions for unit in self.units_of(action))

    def units_of(self, action: Action) -> list[Unit]:
        """The units that an action runs, in its order."""
        units = self.chunks[action.chunk]
        return units if action.kind == "F" else units[::-1]

    def _units(self, piece: int) -> list[Unit]:
        last = len(self.resolved.stage_layers) - 1
        first_layer = sum(self.resolved.stage_layers[:piece])
        layers = range(first_layer, first_layer + self.resolved.stage_layers[piece])
        units = [Unit("block", self._block(layer), self.resolved.recompute[layer]) for layer in layers]
        if piece == 0:
            units.insert(0, Unit("embedding", self._embedding()))
        if piece == last:
            units.append(self._head())
        return units

    def _embedding(self) -> tuple[ShardSizes, ...]:
        return self._divided("embedding", ("embed",))

    def _block(self, layer: int) -> tuple[ShardSizes, ...]:
        names, lora = BLOCK + (HEAD_NORMS if self.config.model.qk_norm else ()), self.config.lora
        own = self._divided(f"block.{layer}", names, layer)
        if lora is None:
            return own
        adapter = [f"{target}.lora_{part}" for target in lora.targets for part in ("A", "B")]
        return own + self._divided(f"block.{layer}.adapter", adapter, layer)

    def _head(self) -> Unit:
        """A tied one takes the embedding's weight, from the embedding's shards where those are on its stage."""
        model, (begin, end) = self.config.model, self.schedule.placement.ends
        if model.head == "scalar":
            return Unit("scalar_head", self._divided("head", ("score", "norm")))
        if not model.tie_word_embeddings:
            return Unit("head", self._divided("head", ("lm_head", "norm")))
        if begin == end:
            return Unit("head", self._divided("head", ("norm",)) + self._embedding())
        return Unit("head", self._divided("head", ("embed", "norm")))

    def _divided(self, unit: str, names: Iterable[str], layer: int | None = None) -> tuple[ShardSizes, ...]:
        """The shards of a unit's own weights: those that are trained, those that are frozen, or both."""
        weights = [LocalWeight(name, *self._sizes[name], self._trains(name, layer)) for name in names]
        trained, frozen = (tuple(w for w in weights if w.trained is kind) for kind in (True, False))
        if not trained:
            return (ShardSizes(unit, frozen),)
        both = (ShardSizes(unit, trained), ShardSizes(f"{unit}.frozen", frozen))
        return both if frozen else both[:1]

    def _trains(self, name: str, layer: int | None) -> bool:
        """What is packed in one weight is trained together or not at all, so any of its names tells."""
        logical = LOGICAL[name][0].format(layer)
        return any(fnmatchcase(logical, pattern) for pattern in self.patterns)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each local weight."""
        model, tensor = self.config.model, self.resolved.tensor
        hidden, head_dim = model.hidden_size, self.resolved.head_dim
        queries = model.num_attention_heads // tensor * head_dim
        key_values = model.num_key_value_heads // tensor * head_dim
        feed = model.intermediate_size // tensor
        vocabulary = (self.resolved.padded_vocab_size // tensor, hidden)
        return self._adapter_sizes(queries, key_values, feed) | {
            "embed": vocabulary,
            "qkv": (queries + 2 * key_values, hidden),
            "o": (hidden, queries),
            "gate_up": (2 * feed, hidden),
            "down": (hidden, feed),
            **dict.fromkeys(("attention_norm", "mlp_norm", "norm"), (hidden, 1)),
            **dict.fromkeys(HEAD_NORMS, (head_dim, 1)),
            "lm_head": vocabulary,
            "score": (1, hidden),
        }

    def _adapter_sizes(self, queries: int, key_values: int, feed: int) -> dict[str, tuple[int, int]]:
        if self.config.lora is None:
            return {}
        rank, hidden = self.config.lora.rank, self.config.model.hidden_size
        sizes: dict[str, tuple[int, int]] = {}
        rows = {"q_proj": queries, "k_proj": key_values, "v_proj": key_values, "gate_proj": feed, "up_proj": feed}
        for target, count in rows.items():
            sizes |= {f"{target}.lora_A": (rank, hidden), f"{target}.lora_B": (count, rank)}
        for target, count in (("o_proj", queries), ("down_proj", feed)):
            sizes |= {f"{target}.lora_A": (rank, count), f"{target}.lora_B": (hidden, rank)}
        return sizes
