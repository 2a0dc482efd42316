"""Closed forms of what a rank of one stage holds in a training step: the moments of its walk, and the fullest of them.

A moment's bytes are those of the units' forms (planning/unit_memory.py), of what is in flight on the stage, and of
ZeRO's weights and gradients: gathered shards are there twice while they are copied out, and beside them the next ones
arrive; full gradients are there twice while they are packed, and what was packed until the next reduction begins.
Model state in bytes a trained parameter of the shard: 4 + 4 + 4 + 4 for master, gradient sum and two moments, and 2 for
a bf16 copy (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1, with fp32 gradient sums); with `train.ema` 4 more
for the average; a frozen one is its copy.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from megatron_lite.config import AlignedConfig, Config, Resolved
from megatron_lite.model.freezing import Patterns
from megatron_lite.parallel.pipeline.routes import Channel, needed_by, received_on, sent_on, stays
from megatron_lite.parallel.pipeline.schedules import Action, Schedule
from megatron_lite.planning.operation_memory import Tape
from megatron_lite.planning.sizes import ShardSizes, StageSizes, Unit
from megatron_lite.planning.unit_memory import UnitMemory


@dataclass(frozen=True)
class Memory:
    """Bytes at a moment. state: masters, moments, averages, gradient sums, compute copies; weights: gathered ones and
    those on their way; gradients: full ones and those on their way; activations: kept for backward, and what the action
    that runs takes; messages: between stages; tokens: ids and angles of the whole step.
    """

    state: int = 0
    weights: int = 0
    gradients: int = 0
    activations: int = 0
    messages: int = 0
    tokens: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


def peak_memory(
    config: Config, resolved: Resolved, schedule: Schedule, stage: int, trainable: Patterns | None = None
) -> Memory:
    """The fullest moment of a step on a rank of `stage`; of the forward pass of a model that is only asked where the
    schedule has forward actions alone. `trainable` are the patterns of what is trained (None: the configuration's).
    """
    return StepMemory(config, resolved, schedule, stage, trainable).peak()


@dataclass
class _Zero:
    """Names of the shards whose weights are full, on their way, whose gradients are full; the reduction in flight."""

    full: set[str] = field(default_factory=set)
    arriving: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    reducing: int = 0


class StepMemory(StageSizes):
    """Walks over the step's turns, in sizes alone."""

    def __init__(
        self, config: Config, resolved: Resolved, schedule: Schedule, stage: int, trainable: Patterns | None = None
    ):
        super().__init__(config, resolved, schedule, stage, trainable)
        self.forms = UnitMemory(self)
        self.turns = list(self.walk())
        self.following = self._following()
        self.last_need = self._last("FBI")
        self.last_left = self._last("BW")
        self.by_name = {shards.name: shards for shards in self.shards}
        self.message = self.forms.outside(config.model.hidden_size)
        self.constant = Memory(state=self._state(), tokens=self._tokens())

    def peak(self) -> Memory:
        self.highest = Memory()
        self.zero, self.saved, self.at_hand = _Zero(), 0, 0
        self.outgoing: set[Channel] = set()
        arrivals = (received_on(action, self.schedule.placement, self.stage) for action in self.actions)
        self.incoming = Counter(channel for channel in arrivals if channel is not None)
        self.position = 0
        for action in self.actions:
            self._run(action)
        return self.highest

    @property
    def parameters(self) -> int:
        """Of this rank's slice of its stage, sharded or not."""
        return sum(shards.elements for shards in self.shards)

    @property
    def logits(self) -> int:
        """Bytes of the head's logits in all their forms at once; 0 where the head is not."""
        return self.forms.logits() if any(unit.kind == "head" for unit in self.units) else 0

    def _run(self, action: Action) -> None:
        place = (action, self.schedule.placement, self.stage)
        passed = 0 if needed_by(*place) is None else self.message  # the input, and after each unit its output
        if channel := received_on(*place):
            self.incoming[channel] -= 1
        elif passed:
            self.at_hand -= self.message
        for unit in self.units_of(action):
            self._enter(passed)
            passed = getattr(self, f"_{action.kind.lower()}")(unit, passed)
            self._leave(unit, passed)
            self.position += 1
        if channel := sent_on(*place):
            self.outgoing.add(channel)
        elif stays(*place):
            self.at_hand += passed

    # A unit's turn: what passes in, what passes out

    def _f(self, unit: Unit, passed: int) -> int:
        self._see(passed, self.forms.forward(unit, self._summed(unit.trained), self.goes_back))
        if not self.goes_back:
            self.saved += self.forms.outputs(unit)
        else:
            self.saved += self.forms.saved(unit)
            if self._ready(unit):
                self.zero.summed.add(unit.trained[-1].name)
        return 0 if unit.ends else self.message

    def _b(self, unit: Unit, passed: int, queues: bool = False) -> int:
        self._see(passed, self.forms.backward(unit, self._summed(unit.trained), queues))
        self.saved -= self.forms.saved(unit)
        if not queues:
            self.zero.summed |= self._left(unit)
        return 0 if unit.kind == "embedding" else self.message

    def _i(self, unit: Unit, passed: int) -> int:
        passed = self._b(unit, passed, queues=True)
        self.saved += self.forms.queued(unit)
        self.zero.summed |= {shards.name for shards in unit.trained if shards.adapts}
        if self._in_chunks(unit) and self.numbers.two_passes:
            self.zero.summed.add(unit.trained[-1].name)
        return passed

    def _w(self, unit: Unit, passed: int) -> int:
        put_off = [shards for shards in unit.trained if not shards.adapts]
        self._see(0, self.forms.weight_backward(unit, self._summed(put_off)))
        self.saved -= self.forms.queued(unit)
        self.zero.summed |= self._left(unit)
        return 0

    def _ready(self, unit: Unit) -> bool:
        """Whether forward makes the full gradient of the unit's product."""
        return self._in_chunks(unit) and not self.numbers.two_passes

    def _in_chunks(self, unit: Unit) -> bool:
        """Whether its product's gradient is made with its logits."""
        return unit.kind == "head" and self.forms.chunked and unit.projection.trained

    def _left(self, unit: Unit) -> set[str]:
        """The shards whose full gradients a backward makes."""
        return set() if self._ready(unit) else {shards.name for shards in unit.trained}

    def _summed(self, trained: Sequence[ShardSizes]) -> bool:
        """Whether the full gradients of a unit's products are there: of a tied head, they lie in its last shards."""
        return self.sharding == 1 or any(shards.name in self.zero.summed for shards in trained[-1:])

    # ZeRO

    def _enter(self, passed: int) -> None:
        zero = self.zero
        for name in self._needs(self.position):
            if name not in zero.full:
                zero.arriving.add(name)
                zero.full.add(name)
                self._see(passed)
                zero.arriving.remove(name)
        zero.arriving |= set(self.following[self.position]) - zero.full

    def _leave(self, unit: Unit, passed: int) -> None:
        zero, action = self.zero, self.turns[self.position][0]
        kept = set(self.following[self.position])
        if self.policy.weights == "step":
            kept = {name for name in self._needs(self.position) if self.last_need[name] > self.position}
        zero.full -= set(self._needs(self.position)) - kept
        if action.kind not in "BW":
            return
        for shards in unit.trained:
            if self.policy.gradients == "microbatch" or self.last_left[shards.name] == self.position:
                packed = self.gathered_size(shards) * self.reduced_bytes
                zero.reducing = packed
                self._see(passed)
                zero.summed -= {shards.name}
                zero.reducing = packed + self.shard_size(shards) * self.reduced_bytes

    def _needs(self, position: int) -> tuple[str, ...]:
        action, unit = self.turns[position]
        return () if action.kind == "W" else tuple(shards.name for shards in unit.shards)

    def _following(self) -> list[tuple[str, ...]]:
        """For each turn, what the next one that needs weights needs."""
        following: tuple[str, ...] = ()
        found: list[tuple[str, ...]] = []
        for position in reversed(range(len(self.turns))):
            found.append(following)
            following = self._needs(position) or following
        return found[::-1]

    def _last(self, kinds: str) -> dict[str, int]:
        """The last turn of these kinds that uses each shards."""
        return {
            shards.name: at
            for at, (action, unit) in enumerate(self.turns)
            if action.kind in kinds
            for shards in unit.shards
        }

    # Moments

    def _see(self, passed: int, tape: Tape | None = None) -> None:
        tape, zero = tape or Tape(), self.zero
        weights = gradients = made = 0
        if self.sharding > 1:
            gathered = [self.by_name[name] for name in [*zero.full, *zero.arriving]]
            weights = self.element_bytes * sum(self.gathered_size(shards) for shards in gathered)
            made = tape.gradients_at_peak
            summed = sum(self.by_name[name].elements for name in zero.summed)
            gradients = self.exact_bytes * summed + zero.reducing + made
        waiting = sum(left > 0 for left in self.incoming.values()) + len(self.outgoing)
        moment = replace(
            self.constant,
            weights=weights,
            gradients=gradients,
            activations=self.saved + passed + tape.peak - made,
            messages=waiting * self.message + self.at_hand,
        )
        if moment.total > self.highest.total:
            self.highest = moment

    def _state(self) -> int:
        return sum(self.shard_size(shards) * self._parameter_bytes(shards) for shards in self.shards)

    def _parameter_bytes(self, shards: ShardSizes) -> int:
        copy = self.element_bytes if self.element_bytes != self.exact_bytes or not shards.trained else 0
        exact = 4 if self.config.train.ema is None else 5
        return copy + (exact * self.exact_bytes if shards.trained else 0)

    def _tokens(self) -> int:
        """Samples, tokens and labels of the step, int64; tables of cosines and sines, positions int32. Packed rows
        bring documents, positions and for pairs where each ends; int64 numbers for dropout and noise, where there are.
        """
        train, resolved = self.config.train, self.resolved
        sequences = resolved.microbatches * train.micro_batch_size
        positions = train.sequence_length // resolved.context
        ids = 8 * sequences * (train.sequence_length + 1 + 2 * positions)
        if isinstance(self.config, AlignedConfig):
            wide = 4 + self.config.compares + (2 if self.config.draws else 0)
            own = 2 + (2 if self.config.draws else 0)
            ids = sequences * (8 * (wide * train.sequence_length + own * positions) + self._seen() + 4 * positions)
        angles = train.sequence_length * resolved.head_dim * self.exact_bytes + 4 * positions
        return ids + angles

    def _seen(self) -> int:
        """What attention knows of a row's documents, four int32 a position: at each step of a ring of its queries and
        keys, of which all but the first have half of either.
        """
        length, ranks = self.config.train.sequence_length, self.resolved.context
        if self.config.parallel.context_kind == "ulysses" or ranks == 1:
            return 16 * length
        return 16 * (length // ranks) + (ranks - 1) * 12 * (length // ranks)
