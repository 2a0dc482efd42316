"""Files and orders against megatron-core 0.16.1 itself, installed from the registry, on many random cases."""

import numpy as np
import pytest
from support.megatron_core import ask
from support.text import write_dataset

from megatron_lite.data.build import split_ranges, split_shares
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.megatron_order import MegatronBlend, MegatronDataset, megatron_samples

pytestmark = pytest.mark.nightly


def random_lengths(rng):
    """Documents of 0 to 3 sequences of 0 to 40 tokens, with at least one token."""
    documents = [rng.integers(0, rng.integers(1, 41), rng.integers(0, 4)).tolist() for _ in range(rng.integers(1, 60))]
    return [*documents, [int(rng.integers(1, 30))]]


def ours_of(prefix, lengths, dtype):
    begin, documents = 0, []
    for document in lengths:
        documents.append([])
        for length in document:
            documents[-1].append(list(range(begin, begin + length)))
            begin += length
    return write_dataset(prefix, documents, dtype)


def test_files_are_the_same_bytes_and_open_on_either_side(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [random_lengths(rng) for _ in range(40)]
    dtypes = [["uint16", "int32"][i % 2] for i in range(40)]
    theirs = [
        {"prefix": str(tmp_path / f"theirs{i}"), "lengths": its, "dtype": dtype}
        for i, (its, dtype) in enumerate(zip(lengths, dtypes, strict=True))
    ]
    for i, (its, dtype) in enumerate(zip(lengths, dtypes, strict=True)):
        ours_of(tmp_path / f"ours{i}", its, np.dtype(dtype))
    answers = ask([*theirs, *({"prefix": str(tmp_path / f"ours{i}")} for i in range(40))], tmp_path / "out")
    for i, read in enumerate(answers[40:]):
        for suffix in ("bin", "idx"):
            assert (tmp_path / f"ours{i}.{suffix}").read_bytes() == (tmp_path / f"theirs{i}.{suffix}").read_bytes()
        dataset = open_indexed(tmp_path / f"theirs{i}")
        for name, array in (("tokens", dataset.tokens), ("lengths", dataset.lengths), ("documents", dataset.documents)):
            assert np.array_equal(read[name], array)


def random_question(rng, directory, lengths):
    """An order over some of the data sets. A part of a split that holds no tokens is not asked for: it hangs there."""
    while True:
        count = int(rng.choice([1, 1, 2, 3, 6]))
        names = rng.choice(len(lengths), count, replace=False).tolist()
        split = str(rng.choice(["1", "90,10", "969,30,1", "3,1,1"]))
        flat = [[length for document in lengths[n] for length in document] for n in names]
        shares = split_shares(split)
        parts = [its[r.start : r.stop] for its in flat for r in split_ranges(shares, len(its))]
        if all(sum(part) > 1 for part, share in zip(parts, shares * count, strict=True) if share > 0):
            break
    return {
        "prefixes": [str(directory / f"d{n}") for n in names],
        "weights": None if count == 1 else (rng.random(count) + 0.05).tolist(),
        "split": split,
        "seed": int(rng.integers(0, 2**32)),
        "sequence_length": int(rng.integers(2, 40)),
        "samples": int(rng.integers(1, 400)),
    }


def test_orders_are_the_same_numbers(tmp_path):
    rng = np.random.default_rng(1)
    lengths = [random_lengths(rng) for _ in range(30)]
    sources = {str(tmp_path / f"d{i}"): ours_of(tmp_path / f"d{i}", its, np.int32) for i, its in enumerate(lengths)}
    questions = [random_question(rng, tmp_path, lengths) for _ in range(300)]
    kinds = set()
    for question, answer in zip(questions, ask(questions, tmp_path / "out"), strict=True):
        shares = split_shares(question["split"])
        parts = [(sources[p], split_ranges(shares, sources[p].sequence_count)[0]) for p in question["prefixes"]]
        samples = megatron_samples(
            parts,
            question["weights"] or [1.0],
            question["samples"],
            question["sequence_length"],
            question["seed"],
            None,
        )
        if isinstance(samples, MegatronBlend):
            datasets, numbers = samples.sources(0, len(samples))
            assert np.array_equal(datasets, answer["dataset"])
            assert np.array_equal(numbers, answer["dataset_sample"])
        for i, dataset in enumerate(samples.datasets if isinstance(samples, MegatronBlend) else [samples]):
            assert isinstance(dataset, MegatronDataset)
            kinds.add((dataset.epochs > 1, dataset.separate_from is not None))
            for part in ("document_index", "sample_index", "shuffle_index"):
                assert np.array_equal(getattr(dataset, part), answer[f"train{i}_{part}"]), (question, part)
        assert np.array_equal(samples.read(0, len(answer["text"])), answer["text"])
    assert kinds == {(False, False), (True, False), (True, True)}
