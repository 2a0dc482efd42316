"""The new tokens of a step's rows as tensors, end to end without padding: products of weights see nothing but them.

Attention alone knows rows. Those with equally many new tokens and tables of about one length are a group, which attends
at once: a step of 1 prompt and 60 decodes is two or three groups, while padding would make 61 prompts of it. In a group
a table is filled up to the longest, which is less than twice as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from megatron_lite.inference.scheduler import Row

GroupKey = tuple[bool, int, int]


@dataclass(frozen=True)
class Group:
    """N rows of T new tokens each, those at `tokens` of the step's.

    tables   int64 [N M], each row's blocks; None where rows begin with these tokens, and see nothing but each other
    visible  what is added to scores [N, 1, T R, M size]: 0, or -inf; [N, 1, 1, M size] where T is 1
    """

    tokens: slice
    rows: int
    tables: Tensor | None = None
    visible: Tensor | None = None


@dataclass(frozen=True)
class NewTokens:
    """T new tokens of all rows, a group after the other.

    tokens, slots              int64 [T]
    positions                  int32 [T, 1]
    place                      int64 [T], where the new tokens stand, in the order of the rows
    last                       int64 [draws], the places of those after which a token is drawn, in the order of the rows
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    place: Tensor
    last: Tensor
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Form:
    """What tensors of a step depend on beside its rows: positions of a block, query heads of a key-value head, the
    dtype of scores, the device.
    """

    block: int
    queries: int
    dtype: torch.dtype
    device: torch.device


def new_tokens(rows: Sequence[Row], form: Form) -> NewTokens:
    """Of a step with a row or more."""
    order = sorted(range(len(rows)), key=lambda number: _key(rows[number]))
    groups: list[Group] = []
    begins, begin = [0] * len(rows), 0
    for (beginning, length, _), members in groupby(order, key=lambda number: _key(rows[number])):
        numbers = list(members)
        for place, number in enumerate(numbers):
            begins[number] = begin + place * length
        end = begin + len(numbers) * length
        some = [rows[number] for number in numbers]
        seen = () if beginning else _seen(some, length, form)
        groups.append(Group(slice(begin, end), len(numbers), *seen))
        begin = end
    inner = [rows[number] for number in order]
    return NewTokens(
        _whole([token for row in inner for token in row.tokens], form),
        _whole([row.start + i for row in inner for i in range(len(row.tokens))], form).unsqueeze(1).to(torch.int32),
        _whole([slot for row in inner for slot in row.slots], form),
        _whole([begins[n] + i for n, row in enumerate(rows) for i in range(len(row.tokens))], form),
        _whole([begins[n] + len(row.tokens) - 1 for n, row in enumerate(rows) if row.draws], form),
        tuple(groups),
    )


def _key(row: Row) -> GroupKey:
    """(whether it begins its sequence, new tokens, the table's length to a power of two)."""
    return row.start == 0, len(row.tokens), 0 if row.start == 0 else len(row.table).bit_length()


def _seen(rows: Sequence[Row], length: int, form: Form) -> tuple[Tensor, Tensor]:
    """(tables, visible) of a group. Where a table is filled up nothing is visible."""
    longest = max(len(row.table) for row in rows)
    tables = _whole([[*row.table, *[0] * (longest - len(row.table))] for row in rows], form).flatten()
    positions = _whole([row.start for row in rows], form)[:, None] + torch.arange(length, device=form.device)
    if length > 1:
        positions = positions.repeat_interleave(form.queries, 1)
    hidden = torch.arange(longest * form.block, device=form.device) > positions[..., None]
    visible = torch.zeros(hidden.shape, dtype=form.dtype, device=form.device).masked_fill_(hidden, float("-inf"))
    return tables, visible.unsqueeze(1)


def _whole(numbers: Sequence, form: Form) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=form.device)
