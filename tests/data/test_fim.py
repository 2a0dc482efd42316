"""Fill-in-the-middle: put back in order, every document is the text it was."""

import numpy as np
import pytest
from support.text import random_texts, train_small_tokenizer, write_dataset

from megatron_lite.data.fim import MIDDLE, NOTHING, PREFIX, SUFFIX, FillInTheMiddle
from megatron_lite.data.samples import GPTDataset, KeyedOrder, file_order
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def source(tmp_path, tokenizer):
    documents = [[[*tokenizer.encode(text), tokenizer.eod_id]] for text in random_texts(3, 60)]
    return write_dataset(tmp_path / "d", documents, tokenizer=tokenizer.identity)


def fim(tokenizer, rate=1.0, spm_rate=0.5, seed=1, stream=0):
    return FillInTheMiddle(tokenizer, rate, spm_rate, seed, stream)


def documents_of(tokenizer, row):
    """The documents of a sample, without their ends."""
    row = row[row != NOTHING]
    return np.split(row, np.flatnonzero(row == tokenizer.eod_id) + 1)


def put_back(tokenizer, tokens):
    """(kind, text) of a document; kind is PSM, SPM or plain. Fails for one whose three tokens are not as they must."""
    names = {tokenizer.special_tokens[name]: name for name in (PREFIX, SUFFIX, MIDDLE)}
    tokens = [int(token) for token in tokens if token != tokenizer.eod_id]
    marks = [(place, names[token]) for place, token in enumerate(tokens) if token in names]
    if not marks:
        return "plain", tokenizer.decode(tokens)
    assert [name for _, name in marks] == [PREFIX, SUFFIX, MIDDLE]
    (first, _), (second, _), (third, _) = marks
    assert first == 0
    one, two, three = (
        tokenizer.decode(part) for part in (tokens[1:second], tokens[second + 1 : third], tokens[third + 1 :])
    )
    # In SPM, prefix and middle are one text behind the third mark.
    return ("PSM", one + three + two) if one else ("SPM", three + two)


def test_rearranged_documents_put_back_are_the_texts_cut_short_only_at_a_samples_end(source, tokenizer):
    plain, rearranged = (
        GPTDataset(source, 200, file_order),
        GPTDataset(source, 200, file_order, transform=fim(tokenizer)),
    )
    kinds = []
    for before, after in zip(plain.read(0, len(plain)), rearranged.read(0, len(plain)), strict=True):
        texts = [tokenizer.decode(document.tolist()) for document in documents_of(tokenizer, before)]
        found = [put_back(tokenizer, document) for document in documents_of(tokenizer, after)]
        kinds += [kind for kind, text in found if text]
        *whole, last = [text for _, text in found]
        assert whole == texts[: len(whole)]
        assert texts[len(whole)].startswith(last)
    assert {"PSM", "SPM"} <= set(kinds)
    assert kinds.count("plain") < len(kinds) / 20


def test_a_sample_keeps_its_length_and_little_of_it_is_left_empty(source, tokenizer):
    dataset = GPTDataset(source, 200, file_order, transform=fim(tokenizer))
    rows = dataset.read(0, len(dataset))
    assert rows.shape == (len(dataset), 201)
    empty = rows == NOTHING
    assert empty.mean() < 0.01
    assert (np.diff(empty.astype(int), axis=1) >= 0).all()  # at the end alone
    assert rows.max() < tokenizer.vocab_size


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 13])
def test_samples_too_short_for_the_three_tokens_stay_plain(source, tokenizer, length):
    rows = GPTDataset(source, length, file_order, transform=fim(tokenizer)).read(0, 50)
    assert rows.shape == (50, length + 1)
    assert (rows >= NOTHING).all()


def test_rates_are_the_shares_of_documents_rearranged_and_of_those_with_the_suffix_first(source, tokenizer):
    dataset = GPTDataset(source, 400, KeyedOrder(4), transform=fim(tokenizer, rate=0.3, spm_rate=0.8))
    kinds = [
        put_back(tokenizer, document)[0]
        for row in dataset.read(0, 40 * len(dataset))
        for document in documents_of(tokenizer, row)[:-1]  # the last one may have been cut to nothing
    ]
    rearranged = len(kinds) - kinds.count("plain")
    # Five standard deviations. A cut that leaves no prefix reads as SPM.
    assert abs(rearranged - 0.3 * len(kinds)) < 5 * (0.21 * len(kinds)) ** 0.5
    assert abs(kinds.count("SPM") - 0.8 * rearranged) < 5 * (0.16 * rearranged) ** 0.5 + 0.05 * rearranged


def test_cuts_fall_on_every_part_of_a_document_alike(tokenizer):
    text = "abcdefghij" * 5
    row = np.array(tokenizer.encode(text) + [tokenizer.eod_id] + [5] * 20)
    make, begins, ends = fim(tokenizer, spm_rate=0.0), [], []
    for sample in range(600):
        (tokens, *_) = documents_of(tokenizer, make(row, 0, sample))
        (_, second, third) = np.flatnonzero(np.isin(tokens, [make.prefix, make.suffix, make.middle]))
        begins.append(len(tokenizer.decode(tokens[1:second].tolist())))
        ends.append(len(text) - len(tokenizer.decode(tokens[second + 1 : third].tolist())))
    # Two places drawn alike: the lower has the mean 1/3, the higher 2/3, of variance 1/18.
    for places, mean in ((begins, 1 / 3), (ends, 2 / 3)):
        assert abs(np.mean(places) / len(text) - mean) < 5 * (1 / 18 / 600) ** 0.5 + 0.01
    assert min(begins) == 0
    assert max(ends) == len(text)


def test_what_is_done_depends_on_seed_stream_epoch_and_sample_alone(source, tokenizer):
    (row,) = GPTDataset(source, 300, file_order).read(0, 1)
    before = row.copy()
    expected = fim(tokenizer)(row, 2, 7)
    assert np.array_equal(row, before)
    assert np.array_equal(fim(tokenizer)(row, 2, 7), expected)
    for other in (
        fim(tokenizer, seed=2)(row, 2, 7),
        fim(tokenizer, stream=1)(row, 2, 7),
        fim(tokenizer)(row, 3, 7),
        fim(tokenizer)(row, 2, 8),
    ):
        assert not np.array_equal(other, expected)


def test_a_sample_is_rearranged_alike_wherever_reading_begins(source, tokenizer):
    def dataset():
        return GPTDataset(source, 64, KeyedOrder(9), transform=fim(tokenizer))

    length = len(dataset())
    whole = dataset().read(0, 3 * length)
    assert np.array_equal(dataset().read(length - 2, length), whole[length - 2 : 2 * length - 2])
    assert not np.array_equal(whole[:length], whole[length : 2 * length])


def test_half_characters_and_special_tokens_stay_where_they_are(tokenizer):
    half = tokenizer.encode("ab" + chr(0x10348) + "cd")
    byte = next(i for i, token in enumerate(half) if tokenizer.is_byte(token))
    chat = tokenizer.special_tokens["<|user|>"]
    for tokens in (
        half[byte + 1 :],
        half[: byte + 2],
        [*half, chat, *half],
        [tokenizer.special_tokens["<unk>"], *half],
    ):
        row = np.array([*tokens, tokenizer.eod_id])
        assert np.array_equal(fim(tokenizer)(row, 0, 0), row)
    row = np.array([*half, tokenizer.eod_id, 5, 6, 7, 8, 9])
    assert not np.array_equal(fim(tokenizer)(row, 0, 0), row)


def test_a_tokenizer_without_the_three_tokens_or_that_adds_spaces_is_refused(tokenizer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "spells_space_mark", False)
        with pytest.raises(DataError, match="adds or drops spaces"):
            fim(tokenizer)
    monkeypatch.setitem(tokenizer.__dict__, "special_tokens", {"</s>": 2, PREFIX: 5})
    with pytest.raises(DataError, match=r"has no <\|fim_suffix\|>, which fill-in-the-middle needs"):
        fim(tokenizer)
