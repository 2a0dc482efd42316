"""Where this process stands among those that were started together. The only reader of the launcher's variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """torchrun tells by RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; a process started by itself is alone.

    A launcher that does not say how many ranks the node has is taken to have started all of them there.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def first_on_node(self) -> bool:
        return self.local_rank == 0


def find_place() -> Place:
    """From the launcher's variables."""

    def told(name: str, default: int) -> int:
        return int(os.environ.get(name, default))

    world_size = told("WORLD_SIZE", 1)
    return Place(told("RANK", 0), world_size, told("LOCAL_RANK", 0), told("LOCAL_WORLD_SIZE", world_size))
