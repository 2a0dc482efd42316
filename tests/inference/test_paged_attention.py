"""Attention that reads blocks where they lie, against the definition in float64."""

import pytest
import torch

from megatron_lite.inference import _paged


def case(groups: int, queries: int, head_dim: int, lengths: list[int], size: int, seed: int = 0):
    """(packed, memory, tables, lengths) in float64. What no row may see is not a number."""
    draw = torch.Generator().manual_seed(seed)
    counts = [-(-length // size) for length in lengths]
    blocks = torch.randperm(sum(counts) + 3, generator=draw).tolist()
    memory = torch.full((len(blocks), size, groups, 2, head_dim), torch.nan, dtype=torch.float64)
    tables = torch.full((len(lengths), max(counts)), 10**6, dtype=torch.int32)
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        own = [blocks.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(own)
        for position in range(length):
            content = torch.randn(groups, 2, head_dim, generator=draw, dtype=torch.float64)
            memory[own[position // size], position % size] = content
    packed = 3 * torch.randn(len(lengths), groups, queries + 2, head_dim, generator=draw, dtype=torch.float64)
    return packed, memory, tables, torch.tensor(lengths, dtype=torch.int32)


def definition(packed, memory, tables, lengths):
    size, results = memory.shape[1], []
    for row, length in enumerate(lengths.tolist()):
        seen = torch.cat([memory[block] for block in tables[row, : -(-length // size)]])[:length]  # [L, G, 2, D]
        scores = torch.einsum("grd,lgd->grl", packed[row, :, :-2], seen[:, :, 0]) / packed.shape[-1] ** 0.5
        results.append(torch.einsum("grl,lgd->grd", scores.softmax(-1), seen[:, :, 1]))
    return torch.stack(results)


def ours(packed, memory, tables, lengths, threads: int = 2):
    output = packed.new_full((*packed.shape[:2], packed.shape[2] - 2, packed.shape[3]), torch.nan)
    _paged.paged_attention(*(x.numpy() for x in (packed, memory, tables, lengths, output)), threads)
    return output


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 3e-6)], ids=str)
@pytest.mark.parametrize(
    "groups, queries, head_dim, size", [(3, 3, 64, 16), (1, 1, 6, 3), (2, 4, 80, 16), (1, 8, 128, 1)]
)
def test_softmax_over_what_tables_name(groups, queries, head_dim, size, dtype, bound):
    packed, memory, tables, lengths = case(groups, queries, head_dim, [1, 16, 17, 100, 2], size)
    found = ours(packed.to(dtype), memory.to(dtype), tables, lengths)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), definition(packed, memory, tables, lengths), rtol=0, atol=bound)


def test_scores_far_apart_leave_the_largest_alone():
    packed, memory, tables, lengths = case(1, 1, 8, [5], 4)
    packed[:, :, 0] *= 1e4
    found = ours(packed.float(), memory.float(), tables, lengths)
    torch.testing.assert_close(found.double(), definition(packed, memory, tables, lengths), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_row_has_the_same_bits_alone_and_with_any_threads(dtype):
    packed, memory, tables, lengths = case(2, 3, 64, [30, 1, 200, 77], 16)
    packed, memory = packed.to(dtype), memory.to(dtype)
    together = ours(packed, memory, tables, lengths)
    assert torch.equal(together, ours(packed, memory, tables, lengths, threads=1))
    for row in range(4):
        alone = ours(packed[row : row + 1], memory, tables[row : row + 1], lengths[row : row + 1])
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("length, block, message", [(0, 0, "lengths"), (9, 0, "lengths"), (8, 99, "tables"),
                                                    (8, -1, "tables")])  # fmt: skip
def test_what_leads_out_of_the_memory_is_refused(length, block, message):
    packed, memory, tables, lengths = case(1, 2, 8, [8], 4)
    lengths[0], tables[0, 1] = length, block
    with pytest.raises(ValueError, match=message):
        ours(packed, memory, tables, lengths)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("tokens", [1, 70])  # on one thread, on several
def test_tokens_turn_by_their_positions_and_lie_in_their_slots(tokens, dtype, bound):
    groups, queries, head_dim, size, draw = 2, 3, 12, 4, torch.Generator().manual_seed(1)
    packed = torch.randn(tokens, groups, queries + 2, head_dim, generator=draw, dtype=torch.float64)
    positions = torch.randint(0, 500, (tokens,), generator=draw, dtype=torch.int32)
    slots = torch.randperm(80, generator=draw)[:tokens]
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    # Element i of a head's first half and of its second are a complex number, which is turned by its angle.
    numbers = (
        torch.complex(*packed[:, :, :-1].chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)[:, None, None]
    )
    turned = torch.cat([numbers.real, numbers.imag], -1)
    table = torch.arange(500, dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    )
    found, memory = packed.to(dtype), torch.full((20, size, groups, 2, head_dim), 7.0, dtype=dtype)
    arrays = found, table.cos().to(dtype), table.sin().to(dtype), positions, slots, memory
    _paged.turn_and_store(*(x.numpy() for x in arrays), 2)
    torch.testing.assert_close(found[:, :, :-1].double(), turned, rtol=0, atol=bound)
    assert torch.equal(found[:, :, -1], packed[:, :, -1].to(dtype))
    places = memory.flatten(0, 1)
    assert torch.equal(places[slots], found[:, :, -2:])
    others = torch.ones(80, dtype=torch.bool).scatter_(0, slots, False)
    assert bool((places[others] == 7).all())


@pytest.mark.parametrize("position, slot, message", [(500, 0, "positions"), (-1, 0, "positions"), (0, 80, "slots")])
def test_what_would_be_stored_outside_the_memory_is_refused(position, slot, message):
    table, memory = torch.zeros(500, 4), torch.zeros(20, 4, 1, 2, 8)
    arrays = torch.zeros(1, 1, 3, 8), table, table, torch.tensor([position], dtype=torch.int32), torch.tensor([slot])
    with pytest.raises(ValueError, match=message):
        _paged.turn_and_store(*(x.numpy() for x in (*arrays, memory)), 1)
