"""What a run trains on and validates on, whatever the algorithm: microbatches by number, the same whenever they are
asked for.

A feed's only state is how many samples the run has consumed, so a resumed run goes on exactly where it was.
"""

from typing import Protocol

from megatron_lite.model.sequences import Sequences


class Feed(Protocol):
    """Dealt out to the data ranks: which samples a step holds depends on (seed, samples consumed) alone."""

    def size(self, consumed: int) -> int:
        """Samples of the global batch that follows after `consumed`."""

    def microbatches(self, consumed: int, step: int) -> list[Sequences]:
        """This data rank's of that batch, on the device, equally many on every data rank. `step`, counted from 1, is
        for random numbers alone.
        """

    def tokens(self, consumed: int) -> int:
        """Read so far, once `consumed` samples are."""

    def close(self) -> None:
        """Nothing is asked for after it."""


class ValidationFeed(Protocol):
    """One set, read once through; its numbers count `weight` in the sets' mean."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def batches(self) -> int:
        """Global batches of the whole set; the last may hold less."""

    def microbatches(self, number: int) -> list[Sequences]:
        """This data rank's of one of them, on the device, equally many on every data rank."""
