"""What `parallel.zero_regather: auto` becomes: `step` where its closed form of memory fits the devices, else
`microbatch`.

Decided by a command before the mesh is built, from the fullest rank's need and the smallest device of all ranks, so
that every rank decides the same. A resumed run keeps what its checkpoint's run took, since the order of sums, and so
the last bits, depend on it; a `step` that does not fit here is not kept.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_lite.checkpoint import config_to_resume
from megatron_lite.config import Config, Resolved, resolve
from megatron_lite.device import total_memory
from megatron_lite.launch import World
from megatron_lite.model.model import schedule_of
from megatron_lite.place import Place
from megatron_lite.planning.memory_forms import peak_memory
from megatron_lite.planning.traffic import regather_costs

log = logging.getLogger("megatron_lite")


@dataclass(frozen=True)
class Margin:
    """What of a device the closed forms may not have, because they do not count it."""

    share: float
    reason: str


# Of accelerators nothing was measured: a tenth is the 8 of 80 GiB that the 65B configurations leave. On a CPU a rank
# holds 0.24 GB of libraries before it has a model, and half leaves data sets their place in the page cache.
ACCELERATOR = Margin(0.1, "the context, communicators, workspaces and the allocator's fragmentation")
HOST = Margin(0.5, "libraries, freed memory that is kept, other programs and the page cache")


@dataclass(frozen=True)
class Need:
    """Bytes that each choice takes at its fullest moment on the fullest rank, and of the smallest device."""

    step: int
    microbatch: int
    device: int


@dataclass(frozen=True)
class Decision:
    """What auto becomes. `before`: the checkpoint that is resumed, and what its run took."""

    chosen: str
    need: Need
    margin: Margin
    before: tuple[str, str] | None = None

    @property
    def kept(self) -> bool:
        return self.before is not None and self.before[1] == self.chosen

    def __str__(self) -> str:
        verb, more = ("keeps" if self.kept else "takes"), ""
        if self.before is not None:
            more = f", {'as' if self.kept else f'not {self.before[1]}, which'} {self.before[0]} has"
        need, room = self.need, room_of(self.need.device, self.margin)
        return (
            f"zero_regather: auto {verb} {self.chosen}{more}: step needs {_shown(need.step)} on the fullest rank, "
            f"microbatch {_shown(need.microbatch)}; there are {_shown(room)} of the smallest device's "
            f"{_shown(need.device)} for it (the rest is for {self.margin.reason})"
        )


def _shown(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def room_of(device: int, margin: Margin) -> int:
    """Bytes of a device that the closed forms may have."""
    return int(device * (1 - margin.share))


def margin_of(device_type: str) -> Margin:
    return HOST if device_type == "cpu" else ACCELERATOR


def decide(need: Need, margin: Margin, before: tuple[str, str] | None = None) -> Decision:
    """Keeps what was taken before, but for a `step` that does not fit."""
    fits = need.step <= room_of(need.device, margin)
    wanted = before[1] if before else "step"
    return Decision(wanted if fits else "microbatch", need, margin, before)


def needed(config: Config, resolved: Resolved, stages: Iterable[int], device: int) -> Need:
    """Of the fullest of some stages."""
    stages = list(stages)
    step, microbatch = (
        max(_peak(config, resolved, choice, stage) for stage in stages) for choice in ("step", "microbatch")
    )
    return Need(step, microbatch, device)


def _peak(config: Config, resolved: Resolved, choice: str, stage: int) -> int:
    schedule = schedule_of(config, resolved, microbatches_until_full(config, resolved))
    return peak_memory(with_regather(config, choice), resolved, schedule, stage).total


def microbatches_until_full(config: Config, resolved: Resolved) -> int:
    """As many as hold what a whole step's do; the forms take seconds for hundreds."""
    most = 3 * resolved.pipeline * resolved.virtual_stages
    return resolved.microbatches if config.parallel.schedule == "gpipe" else min(most, resolved.microbatches)


def with_regather(config: Config, choice: str) -> Config:
    parallel = config.parallel.model_copy(update={"zero_regather": choice})
    return config.model_copy(update={"parallel": parallel})


def decided(config: Config, place: Place, world: World) -> Config:
    """The configuration with `auto` decided, the same on every rank; all of them call it, before the mesh is built.

    The first rank logs the decision, and what either choice costs.
    """
    resolved = resolve(config, place.world_size)
    if config.parallel.zero_regather == "auto":
        config = with_regather(config, _decision(config, resolved, place, world).chosen)
    if place.first and config.parallel.zero_stage == 3 and resolved.zero_size > 1:
        log.info(_costs(config, resolved))
    return config


def _costs(config: Config, resolved: Resolved) -> str:
    costs = regather_costs(config, resolved, schedule_of(config, resolved, resolved.microbatches), stage=0)
    return (
        f"zero_regather: microbatch moves {costs.microbatch / 1e9:,.3g} GB a rank a step; step moves "
        f"{costs.step / 1e9:,.3g} GB and holds {costs.held / 1e9:,.3g} GB of weights and gradients"
    )


def _decision(config: Config, resolved: Resolved, place: Place, world: World) -> Decision:
    stage = place.rank // (place.world_size // resolved.pipeline)  # the mesh's slowest axis
    mine = needed(config, resolved, [stage], total_memory(world.device, place.local_world_size))
    word = {"need": asdict(mine), "before": _before(config) if place.first else None}
    words = [json.loads(text) for text in world.words.exchange(json.dumps(word), "zero_regather")]
    widest = _widest([Need(**word["need"]) for word in words])
    before = words[0]["before"]
    decision = decide(widest, margin_of(world.device.type), before and tuple(before))
    if place.first:
        log.info(str(decision))
    return decision


def _widest(needs: Sequence[Need]) -> Need:
    return Need(
        max(need.step for need in needs), max(need.microbatch for need in needs), min(need.device for need in needs)
    )


def _before(config: Config) -> tuple[str, str] | None:
    """The checkpoint that the run will go on from, and what its run took."""
    found = config_to_resume(Path(config.train.run_dir) / "checkpoints", config.checkpoint.resume)
    return None if found is None else (found[0].name, found[1]["parallel"]["zero_regather"])
