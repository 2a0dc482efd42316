"""The new tokens of a step's rows as tensors, end to end without padding: products of weights see nothing but them.

Attention alone knows rows. Those with equally many new tokens are a group, which attends at once: a step of 1 prompt
and 60 decodes is two groups, while padding would make 61 prompts of it. Where blocks are copied for it, a group has
tables of about one length: each is filled up to the longest, which is less than twice as long. Where they are read in
place every token attends by itself, and rows of a few tokens are one group, however many each has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from megatron_lite.inference.scheduler import Row

GroupKey = tuple[bool, int, int]
FEW = 64  # new tokens of a row that read its blocks one by one; of more a copy of the blocks is read at once


@dataclass(frozen=True)
class Beginning:
    """N rows of T new tokens each, those at `tokens` of the step's, which see nothing but each other."""

    tokens: slice
    rows: int


@dataclass(frozen=True)
class InPlace:
    """N new tokens of any rows, each of which reads its row's blocks where they lie.

    tables   int32 [N, M], each one's blocks
    lengths  int32 [N], positions that each sees, its own the last
    """

    tokens: slice
    tables: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Padded:
    """N rows of T new tokens each, whose blocks are copied.

    tables   int64 [N M], each row's blocks
    visible  what is added to scores [N, 1, T R, M size]: 0, or -inf; [N, 1, 1, M size] where T is 1
    """

    tokens: slice
    rows: int
    tables: Tensor
    visible: Tensor


Group = Beginning | InPlace | Padded


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

    @property
    def in_place(self) -> bool:
        """Whether there is an attention that reads blocks where they lie (csrc/paged_attention.cpp)."""
        return self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64)


def new_tokens(rows: Sequence[Row], form: Form) -> NewTokens:
    """Of a step with a row or more."""
    keys = [_key(row, form) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: keys[number])
    groups: list[Group] = []
    begins, begin = [0] * len(rows), 0
    for _, members in groupby(order, key=lambda number: keys[number]):
        numbers, end = list(members), begin
        for number in numbers:
            begins[number] = end
            end += len(rows[number].tokens)
        groups.append(_group([rows[number] for number in numbers], slice(begin, end), form))
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


def _key(row: Row, form: Form) -> GroupKey:
    """(whether it begins its sequence, new tokens, the table's length to a power of two), where these matter."""
    if row.start == 0:
        return True, len(row.tokens), 0
    return (False, 0, 0) if _in_place(row, form) else (False, len(row.tokens), len(row.table).bit_length())


def _in_place(row: Row, form: Form) -> bool:
    return form.in_place and len(row.tokens) <= FEW


def _group(rows: Sequence[Row], tokens: slice, form: Form) -> Group:
    """Of rows with one key."""
    if rows[0].start == 0:
        return Beginning(tokens, len(rows))
    longest = max(len(row.table) for row in rows)
    tables = _whole([[*row.table, *[0] * (longest - len(row.table))] for row in rows], form)
    if _in_place(rows[0], form):
        counts = _whole([len(row.tokens) for row in rows], form)
        lengths = _whole([row.start + i + 1 for row in rows for i in range(len(row.tokens))], form)
        return InPlace(tokens, tables.to(torch.int32).repeat_interleave(counts, 0), lengths.to(torch.int32))
    length, starts = len(rows[0].tokens), _whole([row.start for row in rows], form)
    positions = starts[:, None] + torch.arange(length, device=form.device)
    if length > 1:
        positions = positions.repeat_interleave(form.queries, 1)
    # Where a table is filled up nothing is visible.
    hidden = torch.arange(longest * form.block, device=form.device) > positions[..., None]
    visible = torch.zeros(hidden.shape, dtype=form.dtype, device=form.device).masked_fill_(hidden, float("-inf"))
    return Padded(tokens, len(rows), tables.flatten(), visible.unsqueeze(1))


def _whole(numbers: Sequence, form: Form) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=form.device)
