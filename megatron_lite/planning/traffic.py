"""Closed forms of what one rank sends in one training step, call by call: the bytes that its ledger must show.

A payload is the larger side of an operation (parallel/collectives.py): for an all-gather or a reduce-scatter over n
ranks that is n shards. Sources: tensor and sequence parallelism, Korthikanti et al. 2022, arXiv 2205.05198, section
4.2.2; ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 7; pipeline messages, Narayanan et al. 2021, arXiv
2104.04473, section 3.2; ring attention, Liu et al. 2023, arXiv 2310.01889, section 3; ulysses, Jacobs et al. 2023,
arXiv 2309.14509, section 3.2. What recomputation, gathering a layer's input again and keeping a gathered unit for the
next pass change is ours.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from megatron_lite.config import Config, Resolved
from megatron_lite.model.freezing import Patterns
from megatron_lite.parallel.pipeline.routes import channels_of, received_on, sent_on
from megatron_lite.parallel.pipeline.schedules import Schedule
from megatron_lite.planning.sizes import HEAD_NORMS, REPLICATED, Numbers, ShardSizes, StageSizes, Unit

Traffic = dict[tuple[str, str], tuple[int, int]]  # (site, operation) -> (calls, bytes)


OF_A_STEP = 5  # beside the objective's: the gradient's square sum, a stop, memory at its peak, reserved and free


class StepTraffic(StageSizes):
    """The traffic of a rank on one stage; every rank of a stage has the same."""

    def __init__(
        self,
        config: Config,
        resolved: Resolved,
        schedule: Schedule,
        stage: int,
        trainable: Patterns | None = None,
        numbers: Numbers | None = None,
    ):
        super().__init__(config, resolved, schedule, stage, trainable, numbers)
        self.found: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.running = self.units
        self.forwards = resolved.microbatches  # of every unit that runs
        self.backwards = resolved.microbatches if self.goes_back else 0

    def total(self) -> Traffic:
        for count in (self._tensor, self._context, self._pipeline, self._zero, self._ends):
            count()
        return self._found()

    def _found(self) -> Traffic:
        return {key: (self.found[key], self.bytes[key]) for key in self.found if self.found[key]}

    def _add(self, site: str, operation: str, calls: int, size: int) -> None:
        self.found[site, operation] += calls
        self.bytes[site, operation] += calls * size

    # Tensor ranks

    def _tensor(self) -> None:
        if self.resolved.tensor == 1:
            return
        count = {
            "embedding": self._embedding_traffic,
            "block": self._block_traffic,
            "head": self._chunked_head_traffic if self.chunked else self._head_traffic,
            "scalar_head": self._scalar_head_traffic,
        }
        for unit in self.running:
            count[unit.kind](unit)

    def _embedding_traffic(self, unit: Unit) -> None:
        self._leaves("embedding.leave", self.forwards, self.backwards if unit.trains("embed") else 0)

    def _block_traffic(self, unit: Unit) -> None:
        again = self.backwards if unit.recompute == "full" else 0
        for site, entering, leaving in (("attention", "qkv", "o"), ("mlp", "gate_up", "down")):
            self._enters(f"{site}.enter", self.forwards + again, unit.trains(entering))
            self._leaves(f"{site}.leave", self.forwards + again, self.backwards)
            # What adapters send between A and B is kept where it arrives, and not gathered again.
            column = self.region_tokens * self.element_bytes
            if columns := self.narrow(entering):
                self._enters(f"{site}.enter.narrow", self.forwards + again, False, columns * column)
            if columns := self.narrow(leaving):
                self._leaves(f"{site}.leave.narrow", self.forwards + again, self.backwards, columns * column)

    def _head_traffic(self, unit: Unit) -> None:
        self._enters("head.enter", self.forwards, unit.projection.trained)
        pairs = self.resolved.tensor * 2 * self.region_tokens * self.exact_bytes
        self._add("cross_entropy.combine", "all_gather", self.forwards, pairs)

    def _chunked_head_traffic(self, unit: Unit) -> None:
        """Once over the microbatch, or again in backward, a chunk at a time, the last of what is left."""
        sequence, tensor = self.config.parallel.sequence, self.resolved.tensor
        ranks = tensor if sequence else 1  # that hold tokens of their own
        row = self.config.model.hidden_size * self.element_bytes
        for tokens, chunks in self.loss_chunks():
            calls, back, size = self.forwards * chunks, self.backwards * chunks, ranks * tokens * row
            if sequence:
                self._add("head.chunk", "all_gather", calls + (back if self.numbers.two_passes else 0), size)
            self._add("head.chunk.backward", "reduce_scatter" if sequence else "all_reduce", back, size)
            self._add("cross_entropy.chunk", "all_gather", calls, tensor * 2 * ranks * tokens * self.exact_bytes)

    def _scalar_head_traffic(self, unit: Unit) -> None:
        """Each rank works out its own tokens' values; the gradients that come back are whole."""
        if self.config.parallel.sequence:
            self._add("head.values", "all_gather", self.forwards, self.region_tokens * self.exact_bytes)

    def _enters(self, site: str, forwards: int, trained: bool, size: int | None = None) -> None:
        """A region, with so many bytes (None: activations); where the product's weight is trained its input is gathered
        again.
        """
        sequence, size = self.config.parallel.sequence, size or self.region_bytes
        if sequence:
            self._add(site, "all_gather", forwards, size)
            self._add(f"{site}.again", "all_gather", self.backwards if trained else 0, size)
        self._add(f"{site}.backward", "reduce_scatter" if sequence else "all_reduce", self.backwards, size)

    def _leaves(self, site: str, forwards: int, backwards: int, size: int | None = None) -> None:
        """A region."""
        sequence, size = self.config.parallel.sequence, size or self.region_bytes
        self._add(site, "reduce_scatter" if sequence else "all_reduce", forwards, size)
        if sequence:
            self._add(f"{site}.backward", "all_gather", backwards, size)

    # Context ranks and stages

    def _context(self) -> None:
        size = self.resolved.context
        if size == 1:
            return
        for unit in self.running:
            if unit.ends:
                numbers = 1 if unit.kind == "scalar_head" else 2  # of each token
                self._add("head.outputs", "all_gather", self.forwards,
                          size * numbers * self.region_tokens * self.exact_bytes)  # fmt: skip
            elif unit.kind == "block":
                forwards = self.forwards + (0 if unit.recompute == "none" else self.backwards)
                if self.config.parallel.context_kind == "ring":
                    self._ring(forwards)
                else:
                    self._exchanged_heads(forwards)

    def _ring(self, forwards: int) -> None:
        steps, model = self.resolved.context, self.config.model
        block = 2 * model.num_key_value_heads // self.resolved.tensor * self._head_bytes
        for operation in ("send", "recv"):
            self._add("context.ring", operation, forwards * (steps - 1), block)
            self._add("context.ring.again", operation, self.backwards * (steps - 1), block)
            gradients = block // self.element_bytes * self.exact_bytes
            self._add("context.ring.gradient", operation, self.backwards * steps, gradients)

    def _exchanged_heads(self, forwards: int) -> None:
        model, tensor = self.config.model, self.resolved.tensor
        queries, key_values = model.num_attention_heads // tensor, model.num_key_value_heads // tensor
        packed = (queries + 2 * max(key_values, self.resolved.context)) * self._head_bytes
        self._add("context.heads", "all_to_all", forwards, packed)
        self._add("context.heads.backward", "all_to_all", self.backwards, packed)
        self._add("context.heads.return", "all_to_all", forwards, queries * self._head_bytes)
        self._add("context.heads.return.backward", "all_to_all", self.backwards, queries * self._head_bytes)

    @property
    def _head_bytes(self) -> int:
        """Of one attention head, all its positions on this rank."""
        return self.region_tokens * self.resolved.head_dim * self.element_bytes

    def _pipeline(self) -> None:
        split = self.resolved.tensor if self.config.parallel.sequence else 1
        for action in self.actions:
            site = "pipeline.activation" if action.kind == "F" else "pipeline.gradient"
            if received_on(action, self.schedule.placement, self.stage) is not None:
                self._add(site, "recv", 1, self.region_bytes // split)
            if sent_on(action, self.schedule.placement, self.stage) is not None:
                self._add(site, "send", 1, self.region_bytes // split)

    # ZeRO

    def _zero(self) -> None:
        uses: Counter[str] = Counter()
        finished: Counter[str] = Counter()
        for action, unit in self.walk():
            uses.update(shards.name for shards in unit.shards if action.kind != "W")
            finished.update(shards.name for shards in unit.trained if action.kind in "BW")
        kept = Counter(name for one, other in self._meetings() for name in _names(one) & _names(other))
        if self.policy.weights == "step":
            uses, kept = Counter(set(uses)), Counter()
        if self.policy.gradients == "step":
            finished = Counter(set(finished))
        for shards in self.shards:
            self._moved(shards, uses[shards.name] - kept[shards.name], finished[shards.name])

    def _moved(self, shards: ShardSizes, gathers: int, reductions: int) -> None:
        if self.sharding > 1:
            size = self.gathered_size(shards)
            self._add("zero.gather", "all_gather", gathers, size * self.element_bytes)
            self._add("zero.reduce", "reduce_scatter", reductions, size * self.reduced_bytes)

    def _meetings(self) -> Iterator[tuple[Unit, Unit]]:
        """The units that follow each other in the walk: what both need stays gathered."""
        return pairwise(unit for action, unit in self.walk() if action.kind != "W")

    # Once a step, whatever the microbatches

    def _ends(self) -> None:
        if self.resolved.zero_size > 1:
            self._add("loss.count", "all_reduce", 1, 8 * self.numbers.denominators)
        if not self.goes_back:
            return
        if self.resolved.world_size > 1:
            row = OF_A_STEP + self.numbers.sums + self.numbers.maxima
            self._add("step.totals", "all_gather", 1, self.resolved.world_size * row * 8)
        self._gradients_end()

    def _gradients_end(self) -> None:
        """Sums over replicas of a shard, of norms over tensor ranks, over stages that are tied."""
        resolved, trained = self.resolved, [weight for shards in self.trained for weight in shards.weights]
        if resolved.zero_size > self.sharding:
            for shards in self.trained:
                self._add("zero.replicate", "all_reduce", 1, self.shard_size(shards) * self.exact_bytes)
        in_parts = HEAD_NORMS + (REPLICATED if self.config.parallel.sequence else ())
        partial = self.rows_size(weight for weight in trained if weight.name in in_parts)
        if resolved.tensor > 1 and partial:
            self._add("norm_gradient.sum", "all_reduce", 1, partial * self.exact_bytes)
        ends = self.schedule.placement.ends
        tied = self.rows_size(weight for weight in trained if weight.name == "embed")
        if self.config.model.tie_word_embeddings and ends[0] != ends[1] and self.stage in ends and tied:
            self._add("tied_gradient.sum", "all_reduce", 1, tied * self.exact_bytes)


def _kind(unit: Unit) -> tuple[str, str, frozenset[str]]:
    """Units of one run the same operations."""
    return unit.kind, unit.recompute, frozenset(name for name in unit.weights if unit.trains(name))


def _names(unit: Unit) -> set[str]:
    return {shards.name for shards in unit.shards}


class ConnectTraffic(StepTraffic):
    """The traffic of the phase `connect`: every group and channel once, then each kind of unit forward and backward by
    itself, and a step's end.
    """

    def total(self) -> Traffic:
        self.forwards = self.backwards = 1
        self.running = list({_kind(unit): unit for unit in reversed(self.units)}.values())
        for count in (self._connections, self._tensor, self._context, self._units_alone, self._ends):
            count()
        return self._found()

    def _connections(self) -> None:
        """One float32 element each."""
        resolved, placement = self.resolved, self.schedule.placement
        replicas = resolved.zero_size // self.sharding
        sizes = [resolved.world_size, resolved.tensor, resolved.context, resolved.zero_size, replicas]
        sizes += [self.sharding] if self.sharding != resolved.zero_size else []  # else it is the group `zero`
        if self.sharding == 1:  # the whole of `zero` holds replicas
            sizes = sizes[:4]
        ends = set(placement.ends)
        sizes += [len(ends)] if self.stage in ends else []
        self._add("connect.group", "all_reduce", sum(size > 1 for size in sizes), 4)
        if resolved.context > 1:
            for operation in ("send", "recv"):
                self._add("connect.ring", operation, 1, 4)
        for channel in channels_of(placement):
            if self.stage in (channel.sender, channel.receiver):
                self._add("connect.channel", "send" if self.stage == channel.sender else "recv", 1, 4)

    def _units_alone(self) -> None:
        """Each kind gathers what it needs and reduces what it leaves, once."""
        for unit in self.running:
            for shards in unit.shards:
                self._moved(shards, gathers=1, reductions=int(shards.trained))


def connect_traffic(
    config: Config,
    resolved: Resolved,
    schedule: Schedule,
    stage: int,
    trainable: Patterns | None = None,
    numbers: Numbers | None = None,
) -> Traffic:
    """(calls, bytes) of every call site and operation, before the first step, of a rank on `stage`."""
    return ConnectTraffic(config, resolved, schedule, stage, trainable, numbers).total()


def step_traffic(
    config: Config,
    resolved: Resolved,
    schedule: Schedule,
    stage: int,
    trainable: Patterns | None = None,
    numbers: Numbers | None = None,
) -> Traffic:
    """(calls, bytes) of every call site and operation, in one training step, of a rank on `stage`; in the forward pass
    of a model that is only asked where the schedule has forward actions alone.

    `trainable` are the patterns of what is trained, `numbers` the objective's (None: the configuration's).
    """
    return StepTraffic(config, resolved, schedule, stage, trainable, numbers).total()


@dataclass(frozen=True)
class RegatherCosts:
    """What `zero_regather` chooses between, for a rank of one stage; bytes a step, and bytes held."""

    microbatch: int  # gathers and reductions of every pass
    step: int  # of one gather and one reduction a unit
    held: int  # gathered weights and unreduced gradients, which `step` keeps until its end


def regather_costs(config: Config, resolved: Resolved, schedule: Schedule, stage: int) -> RegatherCosts:
    """The traffic and the memory of both policies at ZeRO-3, whichever is configured."""
    moved = {}
    for choice in ("microbatch", "step"):
        parallel = config.parallel.model_copy(update={"zero_stage": 3, "zero_regather": choice})
        traffic = step_traffic(config.model_copy(update={"parallel": parallel}), resolved, schedule, stage)
        moved[choice] = sum(size for (site, _), (_, size) in traffic.items() if site in ("zero.gather", "zero.reduce"))
    forms = StepTraffic(config.model_copy(update={"parallel": parallel}), resolved, schedule, stage)
    held = sum(
        forms.gathered_size(shards) * (forms.element_bytes + (forms.exact_bytes if shards.trained else 0))
        for shards in forms.shards
    )
    return RegatherCosts(moved["microbatch"], moved["step"], held)
