"""`order: megatron` against what megatron-core 0.16.1 answered, and its parts against numpy and plain Python.

The answers were recorded by tests/support/megatron_core.py; test_megatron_core.py asks anew.
"""

import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from support.megatron_core import ANSWERS
from support.text import write_dataset

from megatron_lite.data import _helpers, cache
from megatron_lite.data.build import split_ranges, split_shares
from megatron_lite.data.indexed import IndexedDataset
from megatron_lite.data.megatron_order import MegatronBlend, MegatronDataset, megatron_samples
from megatron_lite.errors import DataError, UsageError

RECORDED = json.loads(ANSWERS.read_text(encoding="utf-8"))


def numbered(prefix, lengths):
    """A data set of sequences of these lengths whose token t is t."""
    starts = np.cumsum([0, *lengths])
    return write_dataset(prefix, [[list(range(a, b))] for a, b in pairwise(starts)])


def parts_of(dataset):
    return {name: getattr(dataset, name) for name in ("document_index", "sample_index", "shuffle_index")}


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: "-".join(case["question"]["prefixes"]))
def test_every_index_and_token_is_megatrons(tmp_path, case):
    question, answer = case["question"], case["answer"]
    shares = split_shares(question["split"])
    sources, valid = [], None
    for name in question["prefixes"]:
        source = numbered(tmp_path / name, RECORDED["lengths"][name])
        train, valid, _ = split_ranges(shares, source.sequence_count)
        sources.append((source, train))
    length, seed = question["sequence_length"], question["seed"]
    weights = question["weights"] or [1.0]
    samples = megatron_samples(sources, weights, question["samples"], length, seed, tmp_path / "cache")

    found = {}
    if isinstance(samples, MegatronBlend):
        found["dataset"], found["dataset_sample"] = samples.sources(0, len(samples))
    for i, dataset in enumerate(samples.datasets if isinstance(samples, MegatronBlend) else [samples]):
        found |= {f"train{i}_{part}": array for part, array in parts_of(dataset).items()}
    if "valid0_sample_index" in answer:
        dataset = MegatronDataset(sources[0][0], length, seed, None, valid)
        found |= {f"valid0_{part}": array for part, array in parts_of(dataset).items()}
    found["text"] = samples.read(0, 3)
    assert {name: array.tolist() for name, array in found.items()} == answer


def test_the_recorded_cases_have_a_last_epoch_apart_and_one_that_is_not(tmp_path):
    source = numbered(tmp_path / "a", RECORDED["lengths"]["a"])
    made = [MegatronDataset(source, 16, 1234, n) for n in (30, 60, 95)]
    assert [(dataset.epochs, dataset.separate_from) for dataset in made] == [(1, None), (2, 52), (2, None)]


@pytest.mark.parametrize("seed", [0, 1, 1234, 2**32 - 1])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 66, 1000, 70_001])
def test_shuffles_are_numpys_one_after_the_other(seed, count):
    expected, found = np.random.RandomState(seed), _helpers.RandomState(seed)
    for dtype, first, copies in ((np.int32, 5, 1), (np.uint32, 0, 1), (np.int32, 7, 3)):
        array = np.tile(np.arange(first, first + count, dtype=dtype), copies)
        expected.shuffle(array)
        shuffled = found.shuffled(np.dtype(dtype), first, first + count, copies)
        assert shuffled.dtype == dtype
        assert np.array_equal(shuffled, array)


def test_a_shuffle_that_numpy_does_in_other_numbers_is_refused():
    with pytest.raises(ValueError, match=r"more than 2\^32 - 2"):
        _helpers.RandomState(0).shuffled(np.dtype(np.int32), 0, 2**31, 2)


# helpers_cpp.build_blending_indices of megatron-core 0.16.1.
def test_blend_equals_megatrons():
    datasets, samples, counts = _helpers.blend_like_megatron([0.5, 0.25, 0.25], 0, 12, [0, 0, 0])
    assert datasets.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0]
    assert samples.tolist() == [0, 0, 0, 1, 2, 1, 1, 3, 4, 2, 2, 5]
    assert counts == [6, 3, 3]


def test_a_long_blend_equals_megatrons():
    datasets, samples, _ = _helpers.blend_like_megatron([0.31, 0.005, 0.25, 0.435], 0, 200_000, [0, 0, 0, 0])
    digest = hashlib.sha256(datasets.tobytes() + samples.tobytes()).hexdigest()
    assert digest == "bb0541ffd1be68728b789981006d09673b847039ce464f5f17def2fc726a1375"


def blended(weights, size):
    counts, taken = [0] * len(weights), []
    for i in range(size):
        lags = [weight * max(i, 1) - count for weight, count in zip(weights, counts, strict=True)]
        chosen = lags.index(max(lags))
        taken.append((chosen, counts[chosen]))
        counts[chosen] += 1
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_blend_equals_the_rule_in_python_also_in_parts(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(rng.integers(1, 8)) + 1e-3
    weights = (weights / weights.sum()).tolist()
    size = int(rng.integers(1, 400))
    middle = int(rng.integers(0, size + 1))
    one, one_samples, counts = _helpers.blend_like_megatron(weights, 0, middle, [0] * len(weights))
    two, two_samples, _ = _helpers.blend_like_megatron(weights, middle, size, counts)
    places = list(zip([*one.tolist(), *two.tolist()], [*one_samples.tolist(), *two_samples.tolist()], strict=True))
    assert places == blended(weights, size)


def synthetic(lengths):
    """A data set that is an index alone, for lengths that no disk here holds."""
    lengths = np.array(lengths, np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)])
    documents = np.arange(len(lengths) + 1)
    return IndexedDataset("synthetic", np.empty(0, np.uint8), lengths, pointers, documents, None, "synthetic")


@pytest.mark.parametrize("sequence_length", [2**20 - 3, 2**30])
def test_samples_past_32_bits_of_tokens_begin_where_integers_say(sequence_length):
    # 2e11 tokens; a count in float32 would be off.
    lengths = np.random.default_rng(0).integers(2**31 - 2**24, 2**31 - 1, 94)
    dataset = MegatronDataset(synthetic(lengths), sequence_length, 3, None)
    order = np.random.RandomState(3)
    places = np.arange(len(lengths), dtype=np.int32)
    order.shuffle(places)
    assert np.array_equal(dataset.document_index, places)
    ends = np.cumsum(lengths[places])
    starts = np.arange(len(dataset) + 1) * sequence_length
    assert len(dataset) == (int(lengths.sum()) - 1) // sequence_length
    at = np.searchsorted(ends, starts, side="right")
    assert np.array_equal(dataset.sample_index, np.stack([at, starts - (ends - lengths[places])[at]], 1))


def test_what_megatrons_32_bits_cannot_hold_is_refused():
    # 5 sequences of 1 token, 2^32 tokens to be read: too many places.
    with pytest.raises(DataError, match="no room for 4294967300 sequences or samples over all epochs"):
        MegatronDataset(synthetic([1] * 5), 2**20, 0, 2**12)
    with pytest.raises(UsageError, match=r"data\.seed = 4294967296: must be below 4294967296"):
        MegatronDataset(synthetic([10]), 4, 2**32, 1)
    with pytest.raises(DataError, match="sequences 0 to 2 hold no tokens"):
        MegatronDataset(synthetic([0, 0]), 4, 0, 1)


def test_a_blend_that_takes_more_than_there_is_is_refused_before_training(tmp_path):
    sources = [(numbered(tmp_path / name, [40]), None) for name in "ab"]
    with pytest.raises(DataError, match=r"b: the blend takes 25 samples of the 9 that megatron-core makes of it"):
        MegatronBlend([MegatronDataset(source, 4, 0, 9) for source, _ in sources[::-1]], [1.0, 1.0], 50)
    assert len(megatron_samples(sources, [1.0, 1.0], 50, 4, 0, None)) == 50


def test_samples_beyond_the_run_are_refused(tmp_path):
    dataset = MegatronDataset(numbered(tmp_path / "a", [100]), 4, 0, None)
    for first, count in ((-1, 1), (24, 1), (20, 5)):
        with pytest.raises(IndexError):
            dataset.read(first, count)


def test_cached_indices_are_those_built(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WORTH_KEEPING", 1)
    source = numbered(tmp_path / "a", RECORDED["lengths"]["a"])
    for _ in range(2):
        made = MegatronDataset(source, 16, 9, 95, cache_dir=tmp_path / "cache")
        for part, array in parts_of(MegatronDataset(source, 16, 9, 95)).items():
            assert np.array_equal(parts_of(made)[part], array)
    assert len(list((tmp_path / "cache").iterdir())) == 4  # the three, and the number of tokens
