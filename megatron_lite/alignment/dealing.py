"""Rows in global batches, dealt out to data ranks and cut into microbatches."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch

from megatron_lite.alignment.batches import on_device
from megatron_lite.model.model import Model
from megatron_lite.model.sequences import Sequences, padded

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DataRank:
    """Whose part of a global batch, in a form that the layout can run: of lengths that are a multiple of `multiple`,
    and in numbers of microbatches that are one of `stages`.
    """

    rank: int = 0
    size: int = 1
    multiple: int = 1
    stages: int = 1
    device: torch.device = CPU

    @classmethod
    def of(cls, model: Model) -> "DataRank":
        mesh, resolved = model.mesh, model.resolved
        return cls(mesh.coordinate["data"], resolved.data, model.multiple, resolved.pipeline, mesh.device)


@dataclass(frozen=True)
class OnceThrough:
    """So many rows read once through, `size` of them in a global batch, `micro` in a microbatch. In a last batch, too,
    ranks have equally many, but the last of them fewer where the rows do not go round.
    """

    rows: int
    size: int
    micro: int
    place: DataRank

    @property
    def batches(self) -> int:
        return ceil(self.rows / self.size)

    def microbatches(self, number: int, rank: int) -> list[range]:
        """The rows of each that a data rank has of a global batch."""
        each, first = self._each(number), number * self.size
        begin, end = (min(first + each * n, first + self.size, self.rows) for n in (rank, rank + 1))
        return [range(start, min(start + self.micro, end)) for start in range(begin, end, self.micro)]

    def sequences(self, number: int, make: Callable[[range], Sequences]) -> list[Sequences]:
        """This data rank's, on its device, as many as every other has; `make` makes one of its rows."""
        mine = [make(rows) for rows in self.microbatches(number, self.place.rank)]
        count, stages = ceil(self._each(number) / self.micro), self.place.stages
        whole = padded(mine or [make(range(1)).nothing()], ceil(count / stages) * stages)
        return [on_device(one, self.place.device) for one in whole]

    def _each(self, number: int) -> int:
        """Rows of a data rank in a global batch."""
        return ceil(min(self.size, self.rows - number * self.size) / self.place.size)
