"""What the model's end makes of a microbatch, and how it comes to rank 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.mesh import Mesh


@dataclass(frozen=True)
class Outputs:
    """A language model's of one microbatch, each [B, S] in float32 (float64 in a float64 run).

    log_probability  of the label; 0 where a label does not count
    log_sum          log-sum-exp of the logits
    entropy          of the distribution, in nats; 0 where a label does not count
    is_largest       1 where a label counts and no piece is more likely, else 0; without a gradient

    The last two are there where the objective wants the distribution.
    """

    log_probability: Tensor
    log_sum: Tensor
    entropy: Tensor | None = None
    is_largest: Tensor | None = None


@dataclass(frozen=True)
class Values:
    """A scalar head's of one microbatch, [B, S] in float32 (float64 in a float64 run)."""

    value: Tensor


@dataclass(frozen=True)
class Made:
    """What the end made of a microbatch: the objective's numbers, and where nothing is trained the outputs too."""

    numbers: dict[str, Tensor]
    outputs: Outputs | Values | None


def stacked(outputs: Outputs | Values) -> Tensor:
    """[n, B, S], in the order of the fields."""
    if isinstance(outputs, Values):
        return outputs.value.unsqueeze(0)
    given = (outputs.log_probability, outputs.log_sum, outputs.entropy, outputs.is_largest)
    return torch.stack([values for values in given if values is not None])


def bring_to_first(mine: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype,
                   mesh: Mesh) -> list[list[Tensor]] | None:  # fmt: skip
    """Every data rank's outputs on rank 0, those of its microbatches, [n, B, S] each; None elsewhere. All ranks of the
    mesh call it, and the host waits.

    `mine` are this rank's, where the model ends; `shapes` their [n, B, S], known everywhere. They go over the zero
    axis, filled up to the longest rank's, and then from the last stage to the first.
    """
    table = torch.tensor(shapes, device=mesh.device).unsqueeze(0)
    sizes = mesh.zero.all_gather(table, "outputs.sizes").wait()[:: mesh.context.size].tolist()
    longest = max(sum(n * b * s for n, b, s in rank) for rank in sizes)
    rows = torch.zeros(1, longest, dtype=dtype, device=mesh.device)
    if mesh.has_head:
        flat = torch.cat([one.to(dtype).flatten() for one in mine])
        rows[0, : len(flat)] = flat
        rows = mesh.zero.all_gather(rows, "outputs.gather").wait()[:: mesh.context.size]  # context ranks have the same
    begin, end = mesh.edges.placement.ends
    if begin != end and not any(mesh.coordinate[axis] for axis in ("data", "context", "tensor")):
        rows = _hand_over(rows, len(sizes), mesh)
    return [_cut(row, rank) for row, rank in zip(rows, sizes, strict=True)] if mesh.rank == 0 else None


def _hand_over(rows: Tensor, count: int, mesh: Mesh) -> Tensor:
    """From the stage where the model ends to the one where it begins."""
    other = 1 - mesh.embedding.rank
    if mesh.has_head:
        return mesh.embedding.send(rows.contiguous(), other, "outputs.first").wait()
    if mesh.has_embedding:
        return mesh.embedding.receive(rows.new_empty(count, rows.shape[1]), other, "outputs.first").wait()
    return rows


def _cut(row: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    parts = row.split([*(n * b * s for n, b, s in sizes), len(row) - sum(n * b * s for n, b, s in sizes)])
    return [part.view(*size) for part, size in zip(parts, sizes, strict=False)]
