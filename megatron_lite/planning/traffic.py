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
from math import ceil

from megatron_lite.config import Config, Resolved
from megatron_lite.parallel.pipeline.routes import channels_of, received_on, sent_on
from megatron_lite.parallel.pipeline.schedules import Schedule
from megatron_lite.planning.sizes import StageSizes, Unit

Traffic = dict[tuple[str, str], tuple[int, int]]  # (site, operation) -> (calls, bytes)


class StepTraffic(StageSizes):
    """The traffic of a rank on one stage; every rank of a stage has the same."""

    def __init__(self, config: Config, resolved: Resolved, schedule: Schedule, stage: int):
        super().__init__(config, resolved, schedule, stage)
        self.found: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.passes = resolved.microbatches  # of every unit
        self.units = [unit for chunk in self.chunks for unit in chunk]

    def total(self) -> Traffic:
        for count in (self._tensor, self._context, self._pipeline, self._zero, self._ends):
            count()
        return self._found()

    def _found(self) -> Traffic:
        return {key: (self.found[key], self.bytes[key]) for key in self.found if self.found[key]}

    def _add(self, site: str, operation: str, calls: int, size: int) -> None:
        self.found[site, operation] += calls
        self.bytes[site, operation] += calls * size

    def _tensor(self) -> None:
        if self.resolved.tensor == 1:
            return
        m, sequence = self.passes, self.config.parallel.sequence
        for unit in self.units:
            forwards = m * (2 if unit.recompute == "full" else 1)
            if unit.kind == "head" and self.chunked:
                self._chunked_head(m)
                continue
            entered = {"block": ("attention.enter", "mlp.enter"), "head": ("head.enter",)}.get(unit.kind, ())
            left = {"block": ("attention.leave", "mlp.leave"), "embedding": ("embedding.leave",)}.get(unit.kind, ())
            for site in entered:
                if sequence:
                    self._add(site, "all_gather", forwards, self.region)
                    self._add(f"{site}.again", "all_gather", m, self.region)
                self._add(f"{site}.backward", "reduce_scatter" if sequence else "all_reduce", m, self.region)
            for site in left:
                self._add(site, "reduce_scatter" if sequence else "all_reduce", forwards, self.region)
                if sequence:
                    self._add(f"{site}.backward", "all_gather", m, self.region)
            if unit.kind == "head":
                pairs = self.resolved.tensor * 2 * self.tokens * self.exact
                self._add("cross_entropy.combine", "all_gather", m, pairs)

    def _chunked_head(self, microbatches: int) -> None:
        """Once over the microbatch, a chunk at a time, the last of what is left."""
        sequence, tensor = self.config.parallel.sequence, self.resolved.tensor
        ranks = tensor if sequence else 1  # that hold tokens of their own
        row = self.config.model.hidden_size * self.element
        for tokens, chunks in self.loss_chunks():
            calls, size = microbatches * chunks, ranks * tokens * row
            if sequence:
                self._add("head.chunk", "all_gather", calls, size)
            self._add("head.chunk.backward", "reduce_scatter" if sequence else "all_reduce", calls, size)
            self._add("cross_entropy.chunk", "all_gather", calls, tensor * 2 * ranks * tokens * self.exact)

    def _context(self) -> None:
        size, model = self.resolved.context, self.config.model
        if size == 1:
            return
        per_head = self.region // model.hidden_size * self.resolved.head_dim  # bytes, of all its positions
        queries = model.num_attention_heads // self.resolved.tensor
        key_values = model.num_key_value_heads // self.resolved.tensor
        m = self.passes
        heads = sum(unit.kind == "head" for unit in self.units)
        self._add("head.outputs", "all_gather", m * heads, size * 2 * self.tokens * self.exact)
        for unit in (unit for unit in self.units if unit.kind == "block"):
            forwards = m * (1 if unit.recompute == "none" else 2)
            if self.config.parallel.context_kind == "ring":
                block = 2 * key_values * per_head
                for operation in ("send", "recv"):
                    self._add("context.ring", operation, forwards * (size - 1), block)
                    self._add("context.ring.again", operation, m * (size - 1), block)
                    self._add("context.ring.gradient", operation, m * size, block // self.element * self.exact)
            else:
                packed = (queries + 2 * max(key_values, size)) * per_head
                self._add("context.heads", "all_to_all", forwards, packed)
                self._add("context.heads.backward", "all_to_all", m, packed)
                self._add("context.heads.return", "all_to_all", forwards, queries * per_head)
                self._add("context.heads.return.backward", "all_to_all", m, queries * per_head)

    def _pipeline(self) -> None:
        split = self.resolved.tensor if self.config.parallel.sequence else 1
        for action in self.actions:
            site = "pipeline.activation" if action.kind == "F" else "pipeline.gradient"
            if received_on(action, self.schedule.placement, self.stage) is not None:
                self._add(site, "recv", 1, self.region // split)
            if sent_on(action, self.schedule.placement, self.stage) is not None:
                self._add(site, "send", 1, self.region // split)

    def _zero(self) -> None:
        each = self.config.parallel.regather == "microbatch"
        regathers = each and self.config.parallel.zero_stage == 3
        reduces_each = each and self.config.parallel.zero_stage >= 2
        uses: Counter[str] = Counter()
        finished: Counter[str] = Counter()
        for action in self.actions:
            for unit in self.chunks[action.chunk]:
                for name in unit.shards:
                    uses[name] += action.kind != "W"
                    finished[name] += action.kind in "BW"
        kept = Counter(name for one, other in self._meetings() for name in set(one.shards) & set(other.shards))
        for name in uses:
            gathers = uses[name] - kept[name] if regathers else 1
            shard = self.shard_size(name)
            if self.sharding > 1:
                self._add("zero.gather", "all_gather", gathers, self.sharding * shard * self.element)
                reductions = finished[name] if reduces_each else 1
                self._add("zero.reduce", "reduce_scatter", reductions, self.sharding * shard * self.reduced)

    def _meetings(self) -> Iterator[tuple[Unit, Unit]]:
        """The units that follow each other in the walk: what both need stays gathered."""
        return pairwise(unit for action, unit in self.walk() if action.kind != "W")

    def _ends(self) -> None:
        """What happens once a step, whatever the microbatches."""
        resolved, model = self.resolved, self.config.model
        if resolved.zero_size > self.sharding:
            for name in {name for chunk in self.chunks for unit in chunk for name in unit.shards}:
                self._add("zero.replicate", "all_reduce", 1, self.shard_size(name) * self.exact)
        if resolved.zero_size > 1:
            self._add("loss.count", "all_reduce", 1, 8)  # of cross-entropy: one denominator
        if resolved.world_size > 1:
            self._add("step.totals", "all_gather", 1, resolved.world_size * 7 * 8)
        if resolved.tensor > 1 and self.config.parallel.sequence:
            units = [unit for chunk in self.chunks for unit in chunk]
            norms = sum({"block": 2, "head": 1}.get(unit.kind, 0) for unit in units)
            size = norms * ceil(model.hidden_size / self.sharding)
            if size:
                self._add("norm_gradient.sum", "all_reduce", 1, size * self.exact)
        placement = self.schedule.placement
        ends = placement.ends
        if model.tie_word_embeddings and ends[0] != ends[1] and self.stage in ends:
            self._add("tied_gradient.sum", "all_reduce", 1, self.shard_rows_size("embedding") * self.exact)


class ConnectTraffic(StepTraffic):
    """The traffic of the phase `connect`: every group and channel once, then each kind of unit forward and backward by
    itself, and a step's end.
    """

    def __init__(self, config: Config, resolved: Resolved, schedule: Schedule, stage: int):
        super().__init__(config, resolved, schedule, stage)
        self.passes = 1
        self.units = list({(unit.kind, unit.recompute): unit for unit in reversed(self.units)}.values())

    def total(self) -> Traffic:
        for count in (self._connections, self._tensor, self._context, self._units_alone, self._ends):
            count()
        return self._found()

    def _connections(self) -> None:
        """One float32 element each."""
        resolved, placement = self.resolved, self.schedule.placement
        replicas = resolved.zero_size // self.sharding
        sizes = [resolved.world_size, resolved.tensor, resolved.context, resolved.zero_size, replicas]
        sizes += [self.sharding] if self.sharding != resolved.zero_size else []  # else it is the group `zero`
        if self.config.parallel.zero_stage == 0:  # nothing is sharded: the whole of `zero` holds replicas
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
        if self.sharding == 1:
            return
        for unit in self.units:
            for name in unit.shards:
                size = self.sharding * self.shard_size(name)
                self._add("zero.gather", "all_gather", 1, size * self.element)
                self._add("zero.reduce", "reduce_scatter", 1, size * self.reduced)


def connect_traffic(config: Config, resolved: Resolved, schedule: Schedule, stage: int) -> Traffic:
    """(calls, bytes) of every call site and operation, before the first step, of a rank on `stage`."""
    return ConnectTraffic(config, resolved, schedule, stage).total()


def step_traffic(config: Config, resolved: Resolved, schedule: Schedule, stage: int) -> Traffic:
    """(calls, bytes) of every call site and operation, in one training step, of a rank on `stage`."""
    return StepTraffic(config, resolved, schedule, stage).total()


@dataclass(frozen=True)
class RegatherCosts:
    """What `zero_regather` chooses between, for a rank of one stage; bytes a step, and bytes held."""

    microbatch: int  # gathers and reductions of every pass
    step: int  # of one gather and one reduction a unit
    held: int  # gathered weights and unreduced gradients, which `step` keeps until its end


def regather_costs(config: Config, resolved: Resolved, schedule: Schedule, stage: int) -> RegatherCosts:
    """The traffic and the memory of both policies at ZeRO-3, whichever is configured."""
    moved = {}
    for policy in ("microbatch", "step"):
        parallel = config.parallel.model_copy(update={"zero_stage": 3, "zero_regather": policy})
        traffic = step_traffic(config.model_copy(update={"parallel": parallel}), resolved, schedule, stage)
        moved[policy] = sum(size for (site, _), (_, size) in traffic.items() if site in ("zero.gather", "zero.reduce"))
    forms = StepTraffic(config, resolved, schedule, stage)
    names = {name for chunk in forms.chunks for unit in chunk for name in unit.shards}
    weights = sum(forms.shard_size(name) * forms.sharding for name in names)
    return RegatherCosts(moved["microbatch"], moved["step"], weights * (forms.element + forms.exact))
