"""The pipeline schedules by name, and how many chunks of the model a stage has under each."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunks:
    """`least` to `most` of them (None: as many as there are layers); `groups` says that with more than one,
    microbatches pass in groups of as many as there are stages.
    """

    least: int
    most: int | None
    groups: bool = False

    def __str__(self) -> str:
        return f"{self.least}" if self.most == self.least else f"{self.least} or more"


CHUNKS: Mapping[str, Chunks] = {
    "gpipe": Chunks(1, 1),
    "1f1b": Chunks(1, None, groups=True),
    "interleaved_1f1b": Chunks(2, None, groups=True),
    "zb_h1": Chunks(1, 1),
    "zb_v": Chunks(2, 2),
}


def passes_in_groups(schedule: str, chunks: int) -> bool:
    """Whether microbatches have to fill groups of as many as there are stages."""
    return chunks > 1 and CHUNKS[schedule].groups
