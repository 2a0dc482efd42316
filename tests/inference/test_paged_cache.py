"""Ragged new tokens over blocks in any order, against the whole forward pass of an independent float64 model."""

from random import Random

import pytest
import torch
from support.generation import loaded, saved_model
from support.layouts import Layout
from support.reference import logits as reference_logits

from megatron_lite.inference.new_tokens import FEW, Beginning, Form, InPlace, Padded, new_tokens
from megatron_lite.inference.paged_cache import cache_bytes
from megatron_lite.inference.scheduler import Row, Sizes

LENGTH, BLOCK = 16, 3


def row(tokens, start: int, table, draws: bool = True, name: int = 0) -> Row:
    """The new ones of `tokens` from `start` on."""
    slots = [table[place // BLOCK] * BLOCK + place % BLOCK for place in range(start, len(tokens))]
    used = table[: -(-len(tokens) // BLOCK)]
    return Row(name, tuple(tokens[start:]), start, tuple(slots), tuple(used), draws)


@pytest.fixture(
    scope="module", params=[Layout(layers=2), Layout(layers=2, qk_norm=True, head_dim=6)], ids=["", "norms"]
)
def case(request, tmp_path_factory):
    checkpoint, weights = saved_model(tmp_path_factory.mktemp("model"), request.param)
    model = loaded(checkpoint)
    return model, lambda tokens: reference_logits(weights, torch.tensor([tokens]), model.config.model)[0]


@pytest.mark.parametrize("seed", range(4))
def test_chunks_of_any_length_are_the_whole_sequence(case, seed):
    model, truth = case
    random, count = Random(seed), 6
    texts = [random.choices(range(61), k=random.randint(1, LENGTH)) for _ in range(count)]
    blocks = random.sample(range(count * 6), count * 6)
    tables = [blocks[6 * n : 6 * n + 6] for n in range(count)]
    cache, done = model.new_cache(Sizes(len(blocks), BLOCK)), [0] * count
    while done != [len(text) for text in texts]:
        going = [n for n in range(count) if done[n] < len(texts[n])]
        rows = []
        for n in random.sample(going, random.randint(1, len(going))):
            end = random.choice([done[n] + 1, random.randint(done[n] + 1, len(texts[n]))])
            rows.append(row(texts[n][:end], done[n], tables[n], random.random() < 0.7, n))
            done[n] = end
        found = model.next_logits(rows, cache)
        expected = [truth(texts[r.sequence][: done[r.sequence]])[-1] for r in rows if r.draws]
        assert len(found) == len(expected)
        for ours, right in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


def test_a_row_sees_blocks_that_another_fills_in_the_same_step(case):
    model, truth = case
    first, second = [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 9, 8]
    # The one that shares comes first in the step: all is stored before anything attends.
    rows = [row(second, 6, [4, 2, 0]), row(first, 0, [4, 2, 5])]
    found = model.next_logits(rows, model.new_cache(Sizes(6, BLOCK, budget=64)))
    torch.testing.assert_close(found, torch.stack([truth(second)[-1], truth(first)[-1]]), rtol=0, atol=1e-12)


def test_what_lies_in_blocks_beyond_a_sequence_is_not_seen(case):
    model, truth = case
    cache = model.new_cache(Sizes(12, BLOCK))
    for memory in cache.memories.values():
        memory.fill_(1e3)
    short, long = [5, 6], list(range(14))
    model.next_logits([row(short[:1], 0, [7], False), row(long[:9], 0, [1, 2, 3, 4, 5], False)], cache)
    found = model.next_logits([row(short, 1, [7]), row(long[:10], 9, [1, 2, 3, 4, 5])], cache)
    torch.testing.assert_close(found, torch.stack([truth(short)[-1], truth(long[:10])[-1]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rows_of_one_length_attend_together_and_no_token_is_padded(dtype):
    text, table = list(range(50)), list(range(20))
    rows = [row(text[:40], 39, table), row(text[:7], 0, table), row(text[:5], 4, table), row(text[:37], 36, table),
            row(text[:12], 8, table, False)]  # fmt: skip
    new = new_tokens(rows, Form(BLOCK, 2, dtype, torch.device("cpu")))
    assert len(new.tokens) == 1 + 7 + 1 + 1 + 4
    assert new.tokens[new.place].tolist() == [39, *range(7), 4, 36, *range(8, 12)]
    assert torch.equal(new.tokens[:, None], new.positions)
    assert new.tokens[new.last].tolist() == [39, 6, 4, 36]
    beginning = [group for group in new.groups if isinstance(group, Beginning)]
    padded = [group for group in new.groups if isinstance(group, Padded)]
    assert [group.rows for group in beginning] == [1]
    seen = {(len(group.tables), *group.visible.shape) for group in padded}
    if dtype == torch.bfloat16:
        assert seen == {(2, 1, 1, 1, 6), (4, 1, 1, 8, 12), (28, 2, 1, 1, 42)}
        return
    (single,) = (group for group in new.groups if isinstance(group, InPlace))
    assert not seen
    chunk = [[0, 1, 2, 3, *[0] * 10]] * 4  # each of its tokens by itself
    assert single.tables.tolist() == [[*range(14)], [0, 1, *[0] * 12], [*range(13), 0], *chunk]
    assert single.lengths.tolist() == [40, 5, 37, 9, 10, 11, 12]


def test_of_many_new_tokens_a_copy_is_read_at_once():
    form = Form(BLOCK, 2, torch.float64, torch.device("cpu"))
    rows = [row(list(range(50)), start, list(range(20)), False) for start in (50 - FEW % 50, 1)]
    several = [row(list(range(FEW + 1 + more)), 1, list(range(40)), False) for more in (0, 1)]
    kinds = [type(group) for group in new_tokens([*rows, *several], form).groups]
    assert kinds == [InPlace, Padded]
    assert [len(one.tokens) for one in several] == [FEW, FEW + 1]


def test_bytes_are_a_closed_form():
    model = Layout(layers=4).config().model
    # Keys and values; 3 layers; 1 of 2 key-value heads; 10 blocks of 16 positions; heads of 8; float32.
    assert cache_bytes(model, 2, 3, Sizes(10), 4) == 2 * 3 * 1 * 160 * 8 * 4
