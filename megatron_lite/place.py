"""Where this process stands among those that were started together. The only reader of the launcher's variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """torchrun tells by RANK, WORLD_SIZE and LOCAL_RANK; a process started by itself is alone."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def first_on_node(self) -> bool:
        return self.local_rank == 0


def find_place() -> Place:
    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Place(rank, world_size, local_rank)
