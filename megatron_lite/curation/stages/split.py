"""Kept documents to those for training and those for validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from megatron_lite.curation.engine import Outputs, Task
from megatron_lite.curation.shards import ShardWriter, read_shard
from megatron_lite.curation.tally import Tally, noted_size


@dataclass(frozen=True)
class Split:
    """Writes `train` and `valid`. A document's id decides, so its side never changes with what else there is.

    Near duplicates do not straddle the two where fuzzy deduplication has left one of each cluster.
    """

    version: ClassVar[int] = 1

    valid_fraction: float
    seed: int

    def __call__(self, task: Task, outputs: Outputs) -> dict[str, Any]:
        tallies = {"train": Tally(), "valid": Tally()}
        with ShardWriter(outputs.path("train")) as train, ShardWriter(outputs.path("valid")) as valid:
            writers = {"train": train, "valid": valid}
            for document in read_shard(Path(task.inputs[0].path)):
                part = "valid" if self.holds_out(document.id) else "train"
                writers[part].write(document)
                flow = tallies[part][document.source]
                flow.entered += noted_size(document)
                flow.leave(document)
        return {part: tally.as_json() for part, tally in tallies.items()}

    def holds_out(self, name: str) -> bool:
        return xxhash.xxh3_64_intdigest(name.encode(), self.seed) < self.valid_fraction * 2**64
