"""Rows of a run: the same from any place, on any number of data ranks; several sets, epochs, validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.layouts import Layout
from support.rows import aligned, dialogues, pairs, write_store

from megatron_lite.alignment.dealing import DataRank
from megatron_lite.alignment.feed import RowsFeed, RowsValidation
from megatron_lite.alignment.sets import RunRows, SampleSet, steps_of
from megatron_lite.config import LoraConfig
from megatron_lite.errors import DataError

LENGTHS = [3, 30, 7, 7, 12, 5, 2, 25, 9, 9, 9, 14, 6, 4, 31, 8, 8, 10, 3, 5]
STEPS = 9  # more than two epochs


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [
        write_store(folder / "one", dialogues(LENGTHS)),
        write_store(folder / "other", dialogues([11, 4, 6, 20, 17, 2], seed=1)),
    ]


def sets_of(stores, *weights: float) -> list[SampleSet]:
    names = ["one", "other"]
    return [SampleSet(name, weight, store) for name, weight, store in zip(names, weights, stores, strict=False)]


def configured(**how):
    data = {"packing": how.pop("packing", True), "seed": how.pop("data_seed", 1234)}
    train = {"global_batch_size": 4, "micro_batch_size": 1, "sequence_length": 32} | how
    return aligned(data=data, **train)


def numbers_in(batches) -> list[list[list[int]]]:
    """Tokens, labels, documents and positions of every row."""
    names = ("tokens", "labels", "documents", "positions")
    return [[getattr(one, name)[row].tolist() for name in names] for one in batches for row in range(len(one.tokens))]


def walked(feed, steps: int) -> list[list[list[list[int]]]]:
    found, consumed = [], 0
    for step in range(1, steps + 1):
        found.append(numbers_in(feed.microbatches(consumed, step)))
        consumed += feed.size(consumed)
    feed.close()
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_a_fresh_feed_gives_a_step_as_one_that_went_there_step_by_step(stores, packing):
    config = configured(packing=packing)
    sets = sets_of(stores, 2.0, 1.0)
    every = walked(RowsFeed(sets, config, DataRank()), STEPS)
    for step in range(STEPS, 0, -1):
        feed = RowsFeed(sets, config, DataRank())
        assert numbers_in(feed.microbatches(4 * (step - 1), step)) == every[step - 1]
        feed.close()
    assert len({str(step) for step in every}) == STEPS


@pytest.mark.parametrize("size", [2, 4])
def test_data_ranks_share_the_rows_that_one_rank_has(stores, size):
    sets, config = sets_of(stores, 1.0, 1.0), configured()
    alone = walked(RowsFeed(sets, config, DataRank()), STEPS)
    ranks = [walked(RowsFeed(sets, config, DataRank(rank, size)), STEPS) for rank in range(size)]
    assert [[row for rank in ranks for row in rank[step]] for step in range(STEPS)] == alone


def test_microbatches_of_another_size_hold_the_same_rows(stores):
    sets = sets_of(stores, 1.0)
    ones, fours = (RowsFeed(sets, configured(micro_batch_size=size), DataRank()) for size in (1, 4))
    assert [len(feed.microbatches(0, 1)) for feed in (ones, fours)] == [4, 1]
    assert walked(ones, 3) == walked(fours, 3)


def test_another_seed_gives_another_order(stores):
    sets = sets_of(stores, 1.0)
    one, other = (walked(RowsFeed(sets, configured(data_seed=seed), DataRank()), 2) for seed in (1, 2))
    assert one != other


def test_a_batch_grows_by_its_ramp_and_rows_go_on_without_a_gap(stores):
    sets, ramp = sets_of(stores, 1.0), {"start": 2, "increment": 2, "samples": 8}
    config = configured(global_batch_size=6, batch_ramp=ramp)
    feed = RowsFeed(sets, config, DataRank())
    growing = walked(feed, 4)
    assert [len(step) for step in growing] == [2, 2, 4, 6]
    steady = walked(RowsFeed(sets, configured(global_batch_size=2), DataRank()), 7)
    assert [row for step in growing for row in step] == [row for step in steady for row in step]


def test_sets_are_taken_by_weight_each_in_epochs_of_its_own(stores):
    rows = RunRows(sets_of(stores, 3.0, 1.0), configured(packing=False))
    read = rows.read(0, 80)
    counts = [sum(which == one for which, _ in read) for one in range(2)]
    assert counts == [60, 20]
    for one, samples in ((0, 20), (1, 6)):
        seen = [number for which, row in read if which == one for number in row]
        for epoch in range(len(seen) // samples):
            assert sorted(seen[epoch * samples :][:samples]) == list(range(samples))
    assert rows.read(50, 30) == read[50:]


def test_a_set_of_weight_0_is_never_taken(stores):
    rows = RunRows(sets_of(stores, 0.0, 1.0), configured())
    assert {which for which, _ in rows.read(0, 50)} == {1}
    assert rows.covering(2) == 2 * len(rows.epochs[1])


def test_tokens_are_those_of_the_rows_read_without_padding(stores):
    sets = sets_of(stores, 2.0, 1.0)
    feed, rows = RowsFeed(sets, configured(), DataRank()), RunRows(sets, configured())
    for count in (0, 1, 7, 40):
        expected = sum(sets[which].store.lengths[row].sum() for which, row in rows.read(0, count)) if count else 0
        assert feed.tokens(count) == expected
    feed.close()


@pytest.mark.parametrize(("epochs", "rows"), [(1.0, 20), (2.0, 40), (0.25, 5), (0.26, 6), (1.1, 22)])
@pytest.mark.parametrize("size", [1, 3])
def test_epochs_of_one_set_take_the_steps_that_its_rows_fill(stores, epochs, rows, size):
    config = configured(packing=False, global_batch_size=size)
    assert steps_of(sets_of(stores, 1.0), epochs, config) == -(-rows // size)


def test_epochs_of_several_sets_last_until_each_was_seen_so_often(stores):
    config, sets = configured(packing=False, global_batch_size=1), sets_of(stores, 1.0, 1.0)
    steps = steps_of(sets, 2.0, config)
    seen = [which for which, _ in RunRows(sets, config).read(0, steps)]
    assert (seen.count(0), seen[-1]) == (40, 0)
    assert seen.count(1) >= 12


def test_steps_of_epochs_follow_the_ramp(stores):
    ramp = {"start": 2, "increment": 2, "samples": 8}
    config = configured(packing=False, global_batch_size=6, batch_ramp=ramp)
    assert steps_of(sets_of(stores, 1.0), 1.0, config) == 5  # 2 + 2 + 4 + 6 + 6 rows


def test_a_set_without_a_sample_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="set empty has no sample"):
        SampleSet("empty", 1.0, write_store(tmp_path / "empty", []))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    both = [(5, 9), (7, 3), (12, 12), (4, 4), (2, 20), (6, 6), (10, 3)]
    margins = [0.5 * number for number in range(7)]
    return write_store(tmp_path_factory.mktemp("pairs") / "pairs", pairs(both), margins)


@pytest.mark.parametrize("packing", [True, False])
def test_pairs_keep_their_margin_and_reference_in_whatever_row_they_lie(compared, packing):
    reference = -np.arange(14.0).reshape(7, 2)
    config = aligned(algorithm="dpo", data={"packing": packing}, global_batch_size=4, sequence_length=32)
    feed = RowsFeed([SampleSet("pairs", 1.0, compared, reference)], config, DataRank())
    found = {}
    for consumed in range(0, 8, 4):
        for one in feed.microbatches(consumed, 1):
            paired, (margin, log) = one.columns["paired"], (one.columns[name] for name in ("margin", "reference"))
            assert paired.shape[1] % 2 == 0
            for row in range(len(paired)):
                for document in range(0, int(paired[row].sum()), 2):
                    tokens = one.tokens[row][one.documents[row] == document].tolist()
                    found[tuple(tokens)] = [*margin[row, document : document + 2], *log[row, document : document + 2]]
    feed.close()
    for number in range(7):
        chosen = tuple(compared.sample(number)[0].tokens.tolist())
        assert found[chosen] == [0.5 * number] * 2 + [-2.0 * number, -2.0 * number - 1]


@pytest.mark.parametrize("layout", [Layout(lora=LoraConfig(dropout=0.1)), Layout(neftune=5.0)], ids=str)
def test_random_keys_are_given_where_there_is_dropout_or_noise_and_change_with_the_step(stores, layout):
    configs = configured(), aligned(layout, global_batch_size=4, sequence_length=32)
    without, feed = (RowsFeed(sets_of(stores, 1.0), config, DataRank()) for config in configs)
    once, again, later = (feed.microbatches(0, step)[0].draws for step in (1, 1, 2))
    assert without.microbatches(0, 1)[0].draws is None
    for one in (without, feed):
        one.close()
    assert torch.equal(once.keys, again.keys)
    assert (once.keys != later.keys).all()


def test_sets_are_told_apart_though_they_hold_the_same(stores):
    sets = [SampleSet(name, 1.0, stores[0]) for name in ("one", "again")]
    config = aligned(Layout(neftune=5.0), data={"packing": False}, global_batch_size=40, sequence_length=32)
    feed = RowsFeed(sets, config, DataRank())
    batches = feed.microbatches(0, 1)
    feed.close()
    assert len({one.draws.keys[0, 0].item() for one in batches}) == 40
    read = feed.rows.read(0, 40)
    assert [row for which, row in read if which == 0] != [row for which, row in read if which == 1]


def validations(given, config, size: int, **layout) -> list[RowsValidation]:
    return [RowsValidation(given, config, DataRank(rank, size, **layout)) for rank in range(size)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("stages", [1, 3])
def test_validation_sees_every_sample_once_in_equally_many_microbatches(stores, packing, size, stages):
    config = configured(packing=packing, global_batch_size=12)
    (given,) = sets_of(stores, 1.0)
    ranks = validations(given, config, size, stages=stages)
    labels: list[int] = []
    for number in range(ranks[0].batches()):
        batches = [rank.microbatches(number) for rank in ranks]
        assert len({len(its) for its in batches}) == 1
        assert len(batches[0]) % stages == 0
        labels += [label for its in batches for one in its for label in one.labels[one.counted].tolist()]
        assert all(one.draws is None for its in batches for one in its)
    right = [int(token) for sample in dialogues(LENGTHS) for token in sample[0].tokens[sample[0].trained]]
    assert sorted(labels) == sorted(right)


def test_validation_goes_by_the_file_whatever_the_seed(stores):
    (given,) = sets_of(stores, 1.0)
    one, other = (RowsValidation(given, configured(data_seed=seed), DataRank()) for seed in (1, 2))
    rows = [row for number in range(one.batches()) for row in one.samples(number)]
    assert rows == [row for number in range(other.batches()) for row in other.samples(number)]
    assert [min(row) for row in rows] == sorted(min(row) for row in rows)
    unpacked = replace(one, config=configured(packing=False))
    assert unpacked.samples(0) == [[0], [1], [2], [3]]


def test_validation_runs_no_more_microbatches_than_its_last_rows_need_and_counts_none_twice(stores):
    given = SampleSet("other", 1.0, stores[1])
    config = configured(packing=False, global_batch_size=32)
    ranks = [rank.microbatches(0) for rank in validations(given, config, 4)]
    assert [len(its) for its in ranks] == [2, 2, 2, 2]  # 6 rows: none is left for the last rank
    counted = [sum(int(one.counted.sum()) for one in its) for its in ranks]
    assert counted[3] == 0
    assert sum(counted) == given.store.trained.sum()


def test_how_rows_are_filled_is_said_of_every_set(stores):
    feed = RowsFeed(sets_of(stores, 1.0, 1.0), configured(), DataRank())
    fills = feed.fills()
    feed.close()
    assert list(fills) == ["one", "other"]
    assert (fills["one"].samples, fills["one"].tokens) == (20, sum(LENGTHS))
    assert fills["one"].padding == pytest.approx(1 - sum(LENGTHS) / (32 * fills["one"].rows))
    validation = RowsValidation(sets_of(stores, 1.0)[0], configured(), DataRank())
    assert (validation.name, validation.weight, validation.fill()) == ("one", 1.0, fills["one"])
