"""Keys and values in blocks: how new ones are stored, and how a group of rows attends over them.

Shapes: N rows with T new tokens each, G key-value heads of this rank, R query heads a key-value head, D head dimension;
M blocks of a table with `size` positions each. A layer's memory is [blocks, size, 2 G D], each position's keys and
values together: a new token is one row of it and a block one piece.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.inference import _paged
from megatron_lite.inference.new_tokens import Beginning, Group, InPlace, Padded
from megatron_lite.kernels.choice import Kernels
from megatron_lite.model.operations import Angles


def turn_and_store(packed: Tensor, angles: Angles, slots: Tensor, memory: Tensor) -> None:
    """Turn packed queries and keys [T, G, R + 2, D] in place, and store keys and values, in one pass over them.

    On a CPU, in float32 and float64.
    """
    _paged.turn_and_store(
        packed.numpy(), angles.cos.numpy(), angles.sin.numpy(), angles.positions.flatten().numpy(), slots.numpy(),
        _by_head(memory, packed).numpy(), torch.get_num_threads(),
    )  # fmt: skip


def attended(packed: Tensor, memory: Tensor, group: Group, kernels: Kernels) -> Tensor:
    """A group's packed and rotated tokens [N T, G, R + 2, D] -> [N T, G R D]; all new keys and values are stored."""
    match group:
        case Beginning():
            return _among_themselves(packed, group, kernels)
        case InPlace():
            return _in_place(packed, memory, group)
        case Padded():
            return _over_copies(packed, memory, group)


def _among_themselves(packed: Tensor, group: Beginning, kernels: Kernels) -> Tensor:
    rows = packed.unflatten(0, (group.rows, -1)).permute(3, 0, 2, 1, 4)  # [R + 2, N, G, T, D]
    queries = rows[:-2].permute(1, 2, 0, 3, 4)  # [N, G, R, T, D]
    output, _ = kernels.attention(queries, rows[-2], rows[-1], True, None)
    return output.transpose(1, 2).flatten(2).flatten(0, 1)


def _in_place(packed: Tensor, memory: Tensor, group: InPlace) -> Tensor:
    """On a CPU, in C++: PyTorch's attention would need a copy of all keys and values, for every layer and token."""
    heads, both, head_dim = packed.shape[1:]
    output = packed.new_empty(len(packed), heads, both - 2, head_dim)
    _paged.paged_attention(
        packed.numpy(), _by_head(memory, packed).numpy(), group.tables.numpy(), group.lengths.numpy(), output.numpy(),
        torch.get_num_threads(),
    )  # fmt: skip
    return output.flatten(1)


def _over_copies(packed: Tensor, memory: Tensor, group: Padded) -> Tensor:
    """The blocks of all tables are copied piece by piece, for PyTorch's attention."""
    heads, both, head_dim = packed.shape[1:]
    found = memory.index_select(0, group.tables).view(group.rows, -1, heads, 2, head_dim)  # [N, M size, G, 2, D]
    keys, values = found.permute(3, 0, 2, 1, 4)  # [N, G, M size, D]
    # A key-value head's R queries are like R tokens: its keys need not be repeated for them.
    tokens = packed[:, :, :-2].unflatten(0, (group.rows, -1)).transpose(1, 2).flatten(2, 3)  # [N, G, T R, D]
    output = F.scaled_dot_product_attention(tokens, keys, values, attn_mask=group.visible)
    return output.unflatten(2, (-1, both - 2)).transpose(1, 2).flatten(2).flatten(0, 1)


def _by_head(memory: Tensor, packed: Tensor) -> Tensor:
    """[blocks, size, G, 2, D], a view."""
    return memory.view(*memory.shape[:2], packed.shape[1], 2, packed.shape[3])
