"""Bits per byte of validation: the loss over the bytes of the text that its counted tokens decode to, set by set."""

import logging
import math

import numpy as np
import pytest
from support.runs import metrics_of, run_pretrain, tree_of
from support.text import flat, random_texts, train_small_tokenizer, write_dataset

from megatron_lite.config import config_from_tree
from megatron_lite.data.build import Datasets, ValidationSet
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError
from megatron_lite.training.text_bytes import TextBytes, bits_per_byte

VOCABULARY, LENGTH, BATCH = 400, 16, 8
SETS = {"prose": 3.0, "code": 1.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("data"), VOCABULARY))


@pytest.fixture(scope="module")
def data_dir(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets")
    for i, name in enumerate(("train", *SETS)):
        documents = [[[*tokenizer.encode(text), tokenizer.eod_id]] for text in random_texts(i, 12 + 5 * i)]
        write_dataset(directory / name, documents, tokenizer=tokenizer.identity)
        (directory / f"{name}.ids").write_text(" ".join(map(str, flat(documents))))
    return directory


def tree(run_dir, data_dir, tokenizer, **changes):
    settings = {
        "model__vocab_size": VOCABULARY,
        "data__tokenizer": tokenizer.path,
        "data__valid": [{"prefix": str(data_dir / name), "weight": weight} for name, weight in SETS.items()],
        "train__steps": 2,
        "train__valid_every": 1,
        "train__valid_batches": 2,
    }
    return tree_of(run_dir, data_dir, **(settings | changes))


def expected(data_dir, tokenizer, name, batches, masked=False):
    """(counted tokens, bytes of their text) of the first sequences of a data set, by its ids alone."""
    ids = np.array((data_dir / f"{name}.ids").read_text().split(), int)
    tokens = min((len(ids) - 1) // LENGTH, batches * BATCH) * LENGTH
    before, labels = ids[:tokens], ids[1 : tokens + 1]
    counts = labels[before != tokenizer.eod_id] if masked else labels
    return len(counts), len(tokenizer.decode(counts).encode())


@pytest.mark.parametrize("masked", [False, True], ids=["all labels", "without the first of a document"])
def test_of_each_set_and_their_mean_by_weight(tmp_path, data_dir, tokenizer, masked):
    run_pretrain(tree(tmp_path / "run", data_dir, tokenizer, data__eod_mask_loss=masked), 1)
    for line, batches in zip(metrics_of(tmp_path / "run"), (2, 10**6), strict=True):
        found = {}
        for name in SETS:
            tokens, size = expected(data_dir, tokenizer, name, batches, masked)
            assert 2 * tokens < size
            found[name] = line[f"valid_loss/{name}"] * tokens / (math.log(2) * size)
            assert line[f"valid_bits_per_byte/{name}"] == pytest.approx(found[name], rel=1e-14)
        mean = (3 * found["prose"] + found["code"]) / 4
        assert line["valid_bits_per_byte"] == pytest.approx(mean, rel=1e-14)


def test_of_rows_shared_out_over_data_ranks_they_are_those_of_one_process(ranks, tmp_path, data_dir, tokenizer):
    one, two = tmp_path / "one", tmp_path / "two"
    run_pretrain(tree(one, data_dir, tokenizer), 1)
    ranks.run(run_pretrain, 2, tree(two, data_dir, tokenizer), 2)
    names = [name for name in metrics_of(one)[0] if name.startswith("valid_bits")]
    assert len(names) == 3
    for ours, theirs in zip(metrics_of(two), metrics_of(one), strict=True):
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-10)


def test_without_a_tokenizer_there_are_none_and_a_line_says_why(tmp_path, data_dir, tokenizer, caplog):
    with caplog.at_level(logging.INFO, "megatron_lite"):
        run_pretrain(tree(tmp_path / "run", data_dir, tokenizer, data__tokenizer=None), 1)
    assert all("valid_loss" in line for line in metrics_of(tmp_path / "run"))
    assert not any(name.startswith("valid_bits") for line in metrics_of(tmp_path / "run") for name in line)
    said = [record.message for record in caplog.records if "bits per byte" in record.message]
    assert said == ["validation has no bits per byte: data.tokenizer is null, which would say what tokens spell"]


def test_where_a_token_may_stand_for_any_text_there_are_none_and_a_line_says_why(tokenizer, data_dir, caplog, tmp_path):
    class Unknown(SentencePieceTokenizer):
        def byte_lengths(self):
            raise DataError("tokenizer t has no byte pieces")

    config = config_from_tree(tree(tmp_path, data_dir, tokenizer))
    with caplog.at_level(logging.INFO, "megatron_lite"):
        assert TextBytes.of(Datasets((), (), Unknown(tokenizer.path), 2), config) is None
    assert [record.message for record in caplog.records] == [
        "validation has no bits per byte: tokenizer t has no byte pieces"
    ]


class Rows:
    """Labels 1, 2, 3, .. on end, and how often they were read."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def read(self, first, count):
        self.reads += count
        assert first + count <= self.count
        return np.arange(first * LENGTH, (first + count) * LENGTH + 1)[None, :].repeat(count, 0)[:, : LENGTH + 1] % 399


def test_a_set_is_counted_once_for_as_many_batches(tokenizer, data_dir, tmp_path):
    rows = Rows(2 * BATCH + 3)
    given = Datasets((), (ValidationSet("a", rows, 1.0),), tokenizer, 2)
    text = TextBytes.of(given, config_from_tree(tree(tmp_path, data_dir, tokenizer)))
    counts = [text.count("a", batches) for batches in (1, 3, 1, 3)]
    assert counts == counts[:2] * 2 and counts[0] < counts[1]
    assert rows.reads == BATCH + 2 * BATCH + 3


def test_a_uniform_model_of_bytes_has_8_bits_per_byte():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0, rel=1e-15)
    assert bits_per_byte(1000 * math.log(256), 4000) == pytest.approx(2.0, rel=1e-15)
