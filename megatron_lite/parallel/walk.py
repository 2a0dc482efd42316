"""What ZeRO does around each unit of a step: planned before the step from the units' order, then carried out."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lite.parallel.zero import Policy, Shards, TrainedShards


@dataclass(frozen=True)
class Use:
    """One unit's turn in a step: the shards whose weights it needs, and those it leaves gradients for."""

    needs: tuple[Shards, ...]
    leaves: tuple[TrainedShards, ...]


@dataclass(frozen=True)
class Turn:
    """What to do around one use: wait for weights, start the next ones, run, release, start reducing."""

    wait: tuple[Shards, ...]
    prefetch: tuple[Shards, ...]
    release: tuple[Shards, ...]
    reduce: tuple[TrainedShards, ...]


def plan_turns(uses: Sequence[Use], policy: Policy) -> tuple[Turn, ...]:
    """Turn a step's uses, in order, into gathers, releases and reductions: known before the step begins.

    Weights are gathered one use ahead, and stay where the next use needs them too.
    """
    turns: list[Turn] = []
    following: tuple[Shards, ...] = ()  # what the next use that needs weights needs
    needed_later: set[int] = set()
    left_later: set[int] = set()
    for use in reversed(uses):
        kept = {id(s) for s in following} if policy.weights == "microbatch" else needed_later
        summed = left_later if policy.gradients == "step" else set()
        turns.append(
            Turn(
                wait=use.needs,
                prefetch=following,
                release=tuple(s for s in use.needs if id(s) not in kept),
                reduce=tuple(s for s in use.leaves if id(s) not in summed),
            )
        )
        following = use.needs or following
        needed_later |= {id(s) for s in use.needs}
        left_later |= {id(s) for s in use.leaves}
    return tuple(reversed(turns))


class Walk:
    """Carries out the turns of one step. At most one reduction is in flight."""

    def __init__(self, turns: Sequence[Turn]):
        self.turns = turns
        self.position = 0
        self._reducing: list[TrainedShards] = []

    def enter(self) -> None:
        """Before a unit runs."""
        turn = self.turns[self.position]
        for shards in turn.wait:
            shards.wait_gather()
        for shards in turn.prefetch:
            if not shards.held:
                shards.start_gather()

    def leave(self) -> None:
        """After it ran."""
        turn = self.turns[self.position]
        self.position += 1
        for shards in turn.release:
            shards.release()
        for shards in turn.reduce:
            self._finish()
            shards.start_reduce()
            self._reducing.append(shards)

    def finish(self) -> None:
        """After the last turn: nothing stays in flight."""
        if self.position != len(self.turns):
            raise RuntimeError(f"the step ended after {self.position} of {len(self.turns)} turns")
        self._finish()

    def _finish(self) -> None:
        for shards in self._reducing:
            shards.finish_reduce()
        self._reducing.clear()
