"""Which keys each query sees, as ranges: what attention needs to know of documents and of split sequences.

Both ends of the ranges grow along the sequence, so a block of queries tells by its first and its last which keys it
sees at all, and which all of it sees.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lengths:
    """Documents in sequences laid end to end: where each begins and the last ends, int32 [documents + 1], and the
    longest of them.
    """

    bounds: Tensor
    longest: int


@dataclass(frozen=True)
class Visible:
    """Query t sees the keys first[t] <= s < last[t]; key s is seen by the queries first_query[s] <= t < last_query[s].

    first, last int32 [B, T], first_query, last_query int32 [B, S]; all non-decreasing along the sequence. An empty
    range sees nothing, or is seen by nothing.
    """

    first: Tensor
    last: Tensor
    first_query: Tensor
    last_query: Tensor

    @property
    def mask(self) -> Tensor:
        """bool [B, 1, T, S]: whether a query sees a key."""
        key = torch.arange(self.first_query.shape[1], device=self.first.device)
        return ((key >= self.first.unsqueeze(-1)) & (key < self.last.unsqueeze(-1))).unsqueeze(1)

    @cached_property
    def lengths(self) -> Lengths | None:
        """Of the documents, where each query sees its own up to itself. Waits for the device, the first time."""
        first, last = torch.stack([self.first, self.last]).cpu()
        sequences, length = first.shape
        position = torch.arange(length, dtype=first.dtype)
        begins = first == position
        same = torch.cat([begins[:, :1], first[:, 1:] == first[:, :-1]], 1)
        if self.first_query.shape[1] != length or not (last == position + 1).all() or not (begins | same).all():
            return None
        bounds = torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([sequences * length])]).to(torch.int32)
        return Lengths(bounds.to(self.first.device, non_blocking=True), int(bounds.diff().max()))

    def split(self, sequences: int) -> list["Visible"]:
        """Of so many sequences each, as views."""
        parts = (x.split(sequences) for x in (self.first, self.last, self.first_query, self.last_query))
        return [Visible(*part) for part in zip(*parts, strict=True)]


def visible_from(first: Tensor, last: Tensor, keys: int) -> Visible:
    """Of int32 [B, T] each, for `keys` keys; where last < first a query sees nothing. No host synchronization."""
    first, last = first.contiguous(), torch.maximum(first, last)
    key = torch.arange(keys, dtype=first.dtype, device=first.device).repeat(first.shape[0], 1)
    # As both ends grow, the queries that see key s are those after the last <= s and before the first > s.
    return Visible(first, last, _count_up_to(last, key), _count_up_to(first, key))


def visible_in_documents(documents: Tensor, queries: Tensor, keys: Tensor) -> Visible:
    """A query sees the keys of its own document at positions up to its own.

    documents int64 [B, S]: the document of each position of whole sequences, non-decreasing. queries, keys int64 [T],
    [S']: the positions of those at hand, ascending.
    """
    keys = keys.contiguous()
    start = torch.searchsorted(documents.contiguous(), documents[:, queries].contiguous())
    first = torch.searchsorted(keys, start, out_int32=True)
    last = torch.searchsorted(keys, queries, right=True, out_int32=True)
    return visible_from(first, last.expand_as(first), len(keys))


def _count_up_to(ascending: Tensor, value: Tensor) -> Tensor:
    """How many numbers of each row are at most the value."""
    return torch.searchsorted(ascending, value, right=True, out_int32=True)
