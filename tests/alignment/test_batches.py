"""Segments of rows as microbatches, by hand: tokens, labels, documents, positions, columns of pairs, random keys."""

import numpy as np
import pytest
import torch
from support.rows import VOCABULARY, made, segment

from megatron_lite.alignment.batches import Collator, Sample, on_device
from megatron_lite.alignment.columns import LAST, MARGIN, PAIRED, REFERENCE
from megatron_lite.model.sequences import check_columns

FIRST = segment([5, 6, 7], [0, 0, 1])
SECOND = segment([8, 9, 10, 11], [0, 0, 1, 1])


def dialogue(one, number: int = 0, key: int = 0) -> Sample:
    return Sample([one], number, key)


def pair(chosen, rejected, number: int = 0, margin: float = 0.0, reference=(0.0, 0.0)) -> Sample:
    columns = {"margin": np.full(2, margin), "reference": np.array(reference)}
    return Sample([chosen, rejected], number, 0, columns)


def test_documents_of_a_row_have_positions_labels_and_numbers_of_their_own():
    made = Collator(VOCABULARY, length=9)([[dialogue(FIRST), dialogue(SECOND)]])
    assert made.tokens.tolist() == [[5, 6, 7, 8, 9, 10, 11, 0, 0]]
    assert made.labels.tolist() == [[-1, 7, -1, -1, 10, 11, -1, -1, -1]]
    assert made.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert made.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    assert made.columns == {}
    assert made.draws is None
    assert made.vocab_size == VOCABULARY


def test_a_row_that_is_full_has_no_document_of_padding():
    made = Collator(VOCABULARY, length=7)([[dialogue(FIRST), dialogue(SECOND)]])
    assert made.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_the_first_token_of_a_document_is_no_target_even_where_it_says_so():
    everything = segment([8, 9, 10], [1, 1, 1])
    made = Collator(VOCABULARY, length=6)([[dialogue(everything), dialogue(everything)]])
    assert made.labels.tolist() == [[9, 10, -1, 9, 10, -1]]


def test_a_token_that_is_also_padding_is_trained_where_a_sample_has_it():
    made = Collator(VOCABULARY, length=5)([[dialogue(segment([4, 0, 0], [0, 1, 1]))]])
    assert made.labels.tolist() == [[0, 0, -1, -1, -1]]


@pytest.mark.parametrize(("multiple", "length"), [(1, 4), (3, 6), (8, 8)])
def test_rows_that_are_not_packed_are_as_long_as_the_longest_that_the_layout_divides(multiple, length):
    made = Collator(VOCABULARY, None, multiple)([[dialogue(FIRST)], [dialogue(SECOND)]])
    assert made.tokens.shape == (2, length)
    assert made.tokens[:, :4].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert made.labels[:, :4].tolist() == [[-1, 7, -1, -1], [-1, 10, 11, -1]]
    assert (made.labels[:, 4:] == -1).all()


def test_documents_of_pairs_alternate_and_bring_their_columns():
    rows = [
        [pair(FIRST, SECOND, margin=0.5, reference=(-1.0, -2.0)), pair(SECOND, FIRST, reference=(-3.0, -4.0))],
        [pair(SECOND, SECOND, margin=2.0, reference=(-5.0, -6.0))],
    ]
    made = Collator(VOCABULARY, length=16, pairs=True)(rows)
    assert made.documents.tolist() == [[0] * 3 + [1] * 4 + [2] * 4 + [3] * 3 + [4] * 2, [0] * 4 + [1] * 4 + [2] * 8]
    ends = [[2, 6, 10, 13], [3, 7]]
    assert [made.columns["last"][row].nonzero().flatten().tolist() for row in range(2)] == ends
    assert made.columns["last"].sum() == 6
    assert made.columns["paired"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert made.columns["margin"].tolist() == [[0.5, 0.5, 0, 0], [2, 2, 0, 0]]
    assert made.columns["reference"].tolist() == [[-1, -2, -3, -4], [-5, -6, 0, 0]]
    check_columns(made, [PAIRED, LAST, MARGIN, REFERENCE])  # as the objectives want them


def test_pairs_whose_halves_are_the_same_stay_two_documents():
    made = Collator(VOCABULARY, length=8, pairs=True)([[pair(FIRST, FIRST)]])
    assert made.documents.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert made.labels.tolist() == [[-1, 7, -1, -1, 7, -1, -1, -1]]


def keys_of(made, row: int, begin: int, length: int) -> list[int]:
    return made.draws.keys[row, begin : begin + length].tolist()


def test_random_keys_belong_to_a_token_of_a_sample_wherever_it_lies():
    collate, random = Collator(VOCABULARY, length=16, draws=True), np.random.default_rng(0)
    one, other = (dialogue(made(length, random), number, key=77) for number, length in ((3, 6), (8, 5)))
    first, second = collate([[one, other], [other]]), collate([[other, one], [one]])
    assert keys_of(first, 0, 0, 6) == keys_of(second, 0, 5, 6) == keys_of(second, 1, 0, 6)
    assert keys_of(first, 0, 6, 5) == keys_of(first, 1, 0, 5) == keys_of(second, 0, 0, 5)
    assert first.draws.lengths[0].tolist() == [6] * 6 + [5] * 5 + [1] * 5


def test_random_keys_differ_between_tokens_samples_halves_of_a_pair_and_steps():
    random = np.random.default_rng(0)
    segments = [made(6, random) for _ in range(2)]
    rows = [[Sample(segments, number, key)] for number, key in ((1, 5), (2, 5), (1, 6))]
    made_of = Collator(VOCABULARY, length=12, draws=True)(rows)
    assert made_of.draws.keys.unique().numel() == 36
    assert (made_of.draws.lengths == 6).all()


def test_what_is_brought_to_a_device_is_all_there():
    rows = [[pair(FIRST, SECOND)]]
    made = Collator(VOCABULARY, length=8, pairs=True, draws=True)(rows)
    brought = on_device(made, torch.device("cpu"))
    for name in ("tokens", "labels", "documents", "positions"):
        assert torch.equal(getattr(brought, name), getattr(made, name))
    assert brought.columns.keys() == made.columns.keys()
    assert all(torch.equal(brought.columns[name], made.columns[name]) for name in made.columns)
    assert torch.equal(brought.draws.keys, made.draws.keys)
    assert torch.equal(brought.draws.lengths, made.draws.lengths)
