import dataclasses
import resource

import numpy as np
import pytest
from support.text import train_byte_level, train_small_tokenizer, write_dataset

from megatron_lite.config import DataConfig
from megatron_lite.data import cache
from megatron_lite.data.blend import BlendedDataset
from megatron_lite.data.build import build_datasets, split_ranges, split_shares
from megatron_lite.data.indexed import open_indexed
from megatron_lite.data.megatron_order import MegatronDataset, megatron_samples
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError

DOCUMENTS = [[list(range(10 * i, 10 * i + 10))] for i in range(20)]  # 200 tokens, 0 to 199


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def config(**fields):
    """Data sets as (prefix, weight, other fields)."""
    for name in {"train", "valid"} & fields.keys():
        fields[name] = [{"prefix": str(p), "weight": w, **dict(*rest)} for p, w, *rest in fields[name]]
    return DataConfig(**({"seed": 1} | fields))


def build(data, vocab_size=1000, cache_dir=None, run_samples=50):
    return build_datasets(data, sequence_length=9, vocab_size=vocab_size, run_samples=run_samples, cache_dir=cache_dir)


def rows_of(samples):
    return samples.read(0, len(samples)).tolist()


def test_training_data_is_permuted_and_validation_data_goes_in_file_order(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)
    write_dataset(tmp_path / "v", DOCUMENTS)
    datasets = build(config(train=[(tmp_path / "t", 1.0)], valid=[(tmp_path / "v", 1.0)]))
    starts = [9 * i for i in range(22)]
    train = datasets.train.read(0, 22)[:, 0].tolist()
    assert sorted(train) == starts
    assert train != starts
    (valid,) = datasets.valid
    assert valid.name == "v"
    assert valid.samples.read(0, 22)[:, 0].tolist() == starts
    assert datasets.tokenizer is None


def test_the_order_follows_the_seed(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)

    def order(seed):
        train = build(config(train=[(tmp_path / "t", 1.0)], seed=seed)).train
        return train.read(0, 22)[:, 0].tolist()

    assert order(1) == order(1) != order(2)


def test_several_data_sets_are_blended_each_in_an_order_of_its_own(tmp_path):
    for name in "ab":
        write_dataset(tmp_path / name, DOCUMENTS)
    train = build(config(train=[(tmp_path / "a", 3.0), (tmp_path / "b", 1.0)])).train
    assert isinstance(train, BlendedDataset)
    assert [one.shares for one in train.blends] == [(0.75, 0.25)]
    one, two = train.datasets
    assert one.read(0, 22)[:, 0].tolist() != (two.read(0, 22)[:, 0]).tolist()


def test_without_valid_or_split_there_is_no_validation_data(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)
    assert build(config(train=[(tmp_path / "t", 1.0)])).valid == ()
    assert build(config(train=[(tmp_path / "t", 1.0)], split="1,0,1")).valid == ()


def test_a_split_gives_training_and_validation_data_apart(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)
    datasets = build(config(train=[(tmp_path / "t", 1.0)], split="70,20,10"))
    train = datasets.train.read(0, len(datasets.train))
    (valid,) = datasets.valid
    assert train.max() < 140
    assert rows_of(valid.samples) == [list(range(140 + 9 * i, 150 + 9 * i)) for i in range(4)]


def test_each_validation_set_has_its_name_its_samples_and_its_weight(tmp_path):
    for name in ("t", "x/v", "y/v", "w"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_dataset(tmp_path / name, DOCUMENTS)
    valid = [
        (tmp_path / "x/v", 3.0),
        (tmp_path / "y/v", 1.0),
        (tmp_path / "w", 0.0),
        (tmp_path / "t", 1, {"name": "T"}),
    ]
    sets = build(config(train=[(tmp_path / "t", 1.0)], valid=valid)).valid
    assert [one.name for one in sets] == [str(tmp_path / "x/v"), str(tmp_path / "y/v"), "w", "T"]
    assert [one.weight for one in sets] == [3, 1, 0, 1]
    assert {len(one.samples) for one in sets} == {22}


def test_validation_sets_of_one_name_are_refused(tmp_path):
    write_dataset(tmp_path / "a", DOCUMENTS)
    twice = [(tmp_path / "a", 1.0), (tmp_path / "a", 1.0)]
    with pytest.raises(UsageError, match=r"2 validation sets are called '.*a'; give each a name of its own"):
        build(config(train=twice, split="1,1"))
    named = [(tmp_path / "a", 1.0), (tmp_path / "a", 1.0, {"name": "b"})]
    assert [one.name for one in build(config(train=named, split="1,1")).valid] == ["a", "b"]


def test_a_split_gives_a_validation_set_for_every_training_set(tmp_path):
    for name in "ab":
        write_dataset(tmp_path / name, DOCUMENTS)
    sets = build(config(train=[(tmp_path / "a", 3.0), (tmp_path / "b", 1.0)], split="1,1")).valid
    assert [(one.name, one.weight, len(one.samples)) for one in sets] == [("a", 3, 11), ("b", 1, 11)]


def test_weights_change_with_the_first_sample_after_so_many_tokens(tmp_path):
    for name in "ab":
        write_dataset(tmp_path / name, DOCUMENTS)
    train = [(tmp_path / "a", 1.0), (tmp_path / "b", 0.0)]
    for tokens, begin in ((89, 10), (90, 10), (91, 11)):
        schedule = [{"from_tokens": tokens, "weights": [0.0, 1.0]}, {"from_tokens": 180, "weights": [1.0, 1.0]}]
        which, _ = build(config(train=train, schedule=schedule)).train.sources(0, 24)
        assert which.tolist() == [0] * begin + [1] * (20 - begin) + [0, 1, 0, 1]


def test_megatrons_order_is_that_of_the_run(tmp_path):
    for name in "ab":
        write_dataset(tmp_path / name, DOCUMENTS)
    data = config(train=[(tmp_path / "a", 3.0), (tmp_path / "b", 1.0)], split="3,1", order="megatron", seed=5)
    datasets = build(data, cache_dir=tmp_path / "cache", run_samples=70)
    parts = [(open_indexed(tmp_path / name), range(15)) for name in "ab"]
    expected = megatron_samples(parts, [3.0, 1.0], 70, 9, 5, None)
    assert rows_of(datasets.train) == rows_of(expected)
    for name, valid in zip("ab", datasets.valid, strict=True):
        assert rows_of(valid.samples) == rows_of(
            MegatronDataset(open_indexed(tmp_path / name), 9, 5, None, range(15, 20))
        )


def test_fill_in_the_middle_is_done_to_the_data_set_that_asks_for_it(tmp_path, tokenizer):
    prefix = tokenizer.special_tokens["<|fim_prefix|>"]
    documents = [[[*tokenizer.encode(f"the model reads a shard of text {i}"), tokenizer.eod_id]] for i in range(40)]
    for name in "ab":
        write_dataset(tmp_path / name, documents, tokenizer=tokenizer.identity)
    fim = {"fim": {"rate": 1.0}}
    train = [(tmp_path / "a", 1.0), (tmp_path / "b", 1.0, fim)]
    data = config(train=train, valid=[(tmp_path / "a", 1.0), (tmp_path / "b", 1.0, fim)], tokenizer=str(tokenizer.path))
    datasets = build(data)
    for samples in (datasets.train.datasets, [valid.samples for valid in datasets.valid]):
        assert [prefix in one.read(0, 20) for one in samples] == [False, True]
    split = build(config(train=train, split="1,1", tokenizer=str(tokenizer.path)))
    assert [prefix in valid.samples.read(0, 5) for valid in split.valid] == [False, False]
    with pytest.raises(UsageError, match=r"data\.tokenizer must be set"):
        build(config(train=train))


def test_more_data_sets_than_open_files_are_allowed_or_refused(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: set_to.append(limits))
    write_dataset(tmp_path / "t", DOCUMENTS)
    data = config(train=[(tmp_path / "t", 1.0)])
    for limits in ((20, 10_000), (20, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=limits: limits)
        build(data)
        ((soft, hard),) = set_to
        assert (soft > 512, hard) == (True, limits[1])
        set_to.clear()
    for enough in ((10_000, 10_000), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=enough: limits)
        build(data)
        assert set_to == []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 30))
    with pytest.raises(DataError, match="1 data sets take 2 open files, and `ulimit -Hn` is 30"):
        build(data)


# The ranges that megatron-core 0.16.1 takes (none where ours is empty).
@pytest.mark.parametrize(
    ("split", "sequences", "expected"),
    [
        ("969,30,1", 1000, [(0, 969), (969, 999), (999, 1000)]),
        ("969, 30, 1", 60, [(0, 58), (58, 60), (60, 60)]),
        ("1", 7, [(0, 7), (7, 7), (7, 7)]),
        ("98,2", 50, [(0, 49), (49, 50), (50, 50)]),
        (".5,.5", 5, [(0, 2), (2, 5), (5, 5)]),
        ("1,1,1", 10, [(0, 3), (3, 7), (7, 10)]),
    ],
)
def test_split_ranges_are_megatrons(split, sequences, expected):
    assert [(r.start, r.stop) for r in split_ranges(split_shares(split), sequences)] == expected


@pytest.mark.parametrize("split", ["", "a", "1,2,3,4", "0,0", "1,,2", "1.2.3", "-1,2", "inf"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(UsageError, match=r"data\.split is"):
        split_shares(split)


def test_validation_data_given_twice_and_training_data_not_given_are_refused(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)
    prefix = [(tmp_path / "t", 1.0)]
    with pytest.raises(UsageError, match=r"data\.valid is given too"):
        build(config(train=prefix, valid=prefix, split="9,1"))
    with pytest.raises(UsageError, match=r"data\.train is empty"):
        build(config())


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(tmp_path, tokenizer):
    write_dataset(tmp_path / "t", DOCUMENTS, tokenizer=tokenizer.identity)
    data = config(train=[(tmp_path / "t", 1.0)], tokenizer=str(tokenizer.path))
    assert build(data, vocab_size=400).tokenizer.sha256 == tokenizer.sha256
    with pytest.raises(DataError, match=r"has 400 tokens, the model's vocab_size is 399"):
        build(data, vocab_size=399)


def test_a_run_goes_with_a_tokenizer_json_as_with_a_model(tmp_path):
    directory = train_byte_level(tmp_path / "model")
    write_dataset(tmp_path / "t", DOCUMENTS, tokenizer=open_tokenizer(directory).identity)
    for path in (directory, directory / "tokenizer.json"):
        datasets = build(config(train=[(tmp_path / "t", 1.0)], tokenizer=str(path)))
        assert (datasets.eod_id, datasets.tokenizer.vocab_size) == (2, 330)


def test_a_data_set_of_another_tokenizer_is_refused(tmp_path, tokenizer):
    other = dataclasses.replace(tokenizer.identity, sha256="0" * 64)
    write_dataset(tmp_path / "t", DOCUMENTS, tokenizer=other)
    with pytest.raises(DataError, match=r"t was written by the tokenizer with sha256 0000000000000000\.\.\., not by"):
        build(config(train=[(tmp_path / "t", 1.0)], tokenizer=str(tokenizer.path)))


def test_without_a_tokenizer_data_sets_of_two_tokenizers_are_refused(tmp_path, tokenizer):
    write_dataset(tmp_path / "a", DOCUMENTS, tokenizer=tokenizer.identity)
    write_dataset(tmp_path / "b", DOCUMENTS, tokenizer=dataclasses.replace(tokenizer.identity, sha256="0" * 64))
    with pytest.raises(DataError, match="b was written by the tokenizer"):
        build(config(train=[(tmp_path / "a", 1.0)], valid=[(tmp_path / "b", 1.0)]))


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_a_token_id_outside_the_vocabulary_is_refused(tmp_path, monkeypatch, sidecar, cached):
    monkeypatch.setattr(cache, "WORTH_KEEPING", 1)
    write_dataset(tmp_path / "t", DOCUMENTS)
    if not sidecar:
        (tmp_path / "t.json").unlink()
    data = config(train=[(tmp_path / "t", 1.0)])
    cache_dir = tmp_path / "cache" if cached else None
    assert build(data, vocab_size=200, cache_dir=cache_dir)
    with pytest.raises(DataError, match="holds token id 199; the model's vocab_size is 199"):
        build(data, vocab_size=199, cache_dir=cache_dir)


def test_a_negative_token_id_is_refused(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS, np.int32)
    (tmp_path / "t.json").unlink()
    raw = np.fromfile(tmp_path / "t.bin", np.int32)
    raw[100] = -5
    raw.tofile(tmp_path / "t.bin")
    with pytest.raises(DataError, match="holds token id -5"):
        build(config(train=[(tmp_path / "t", 1.0)]))


def test_a_data_set_without_tokens_is_refused(tmp_path):
    write_dataset(tmp_path / "t", [[]])
    with pytest.raises(DataError, match="holds no tokens"):
        build(config(train=[(tmp_path / "t", 1.0)]))


def test_a_tokenizer_that_is_missing_or_none_is_refused(tmp_path):
    write_dataset(tmp_path / "t", DOCUMENTS)
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match="No such file"):
        build(config(train=[(tmp_path / "t", 1.0)], tokenizer=str(tmp_path / "missing.model")))
    with pytest.raises(DataError, match="is no SentencePiece model"):
        build(config(train=[(tmp_path / "t", 1.0)], tokenizer=str(tmp_path / "bad.model")))
