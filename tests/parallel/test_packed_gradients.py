"""What a rank sends off in a reduction: each rank's rows of each gradient, and zeros where there are none."""

import pytest
import torch

from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.layout import Local, Logical, Packed, ShardLayout
from megatron_lite.parallel.weights import Numerics
from megatron_lite.parallel.zero import TrainedShards


def local(name: str, *shape: int) -> Local:
    logical = Logical(name, shape, deviation=1.0, weight_decay=True)
    return Local(name, shape, (Packed(logical, 0, shape[0], (0,) * len(shape)),))


def test_rows_go_to_their_ranks_and_what_no_rank_has_is_zero_whatever_memory_held(monkeypatch):
    """Over four ranks 5 rows are 2 + 2 + 1 + 0, 8 are 2 each, 1 row of 3 is cut into its elements; 4 have no gradient.

    That makes 8 elements, which a tail of 8 fills up to 16.
    """
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **named: empty(*size, **named).fill_(float("nan")))
    locals_ = (local("five", 5, 2), local("eight", 8), local("one", 1, 3), local("unused", 4))
    numerics = Numerics(torch.float32, torch.float32, torch.float32, torch.device("cpu"), kernels=None)
    ranks = Communicator("zero", (0, 1, 2, 3), 0)
    shards = TrainedShards("unit", ShardLayout(locals_, 4), ranks, ranks, numerics)
    five, eight, one = torch.arange(1.0, 11).view(5, 2), torch.arange(11.0, 19), torch.tensor([[19.0, 20, 21]])
    for weight, gradient in zip(shards.weights, (five, eight, one), strict=False):
        weight.gradient, weight.begun = gradient, True
    tail = [0.0] * 8
    assert shards._packed_gradients().tolist() == [
        [1, 2, 3, 4, 11, 12, 19, 0, *tail],
        [5, 6, 7, 8, 13, 14, 20, 0, *tail],
        [9, 10, 0, 0, 15, 16, 21, 0, *tail],
        [0, 0, 0, 0, 17, 18, 0, 0, *tail],
    ]
    assert [weight.gradient for weight in shards.weights] == [None] * 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 12, 24, 50])
@pytest.mark.parametrize("shape", [(3, 8), (1, 12), (12, 2), (7, 3), (5,)], ids=str)
def test_every_element_lies_in_one_shard_also_where_rows_are_fewer_than_ranks(shape, ranks):
    layout = ShardLayout((local("first", 4, 4), local("weight", *shape)), ranks)
    seen = torch.zeros(shape, dtype=torch.int64)
    for rank in range(ranks):
        places = [box for one, box in layout.boxes(rank) if one.name == "weight"]
        for box in places:
            seen[box.slices] += 1
            assert layout.offsets[1] <= box.offset and box.offset + box.size <= layout.offsets[2]
    assert (seen == 1).all()


def test_a_few_rows_take_no_more_room_than_they_have_where_pieces_divide():
    """16 rows of 8192 over 512 ranks are 32 pieces each, one a rank; whole rows would be gathered 32 times over."""
    layout = ShardLayout((local("narrow", 16, 8192),), 512)
    assert layout.pieces(layout.locals[0]) == 32
    assert 512 * layout.size == 16 * 8192
    ((_, box),) = layout.boxes(33)
    assert (box.start, box.shape, box.offset) == ((1, 256), (1, 256), 0)
