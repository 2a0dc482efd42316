import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.text import random_texts, train_byte_level, train_small_tokenizer

from megatron_lite.data import json_tokenizer
from megatron_lite.data import tokenizer as tokenizer_module
from megatron_lite.data.fast_tokenizer import ADVERSARIAL, fast_tokenizer
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError, UsageError

CONTROL = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return train_byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return open_tokenizer(directory)


@pytest.fixture
def changed(directory, tmp_path):
    """Opens the tokenizer with keys of tokenizer.json (dotted) replaced, and with another configuration beside it."""

    def change(config=None, **keys):
        tree = json.loads((directory / "tokenizer.json").read_text())
        for key, value in keys.items():
            *path, last = key.split("__")
            inner = tree
            for name in path:
                inner = inner[name]
            inner[last] = value
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config or {"eos_token": "<|im_end|>"}))
        return open_tokenizer(tmp_path)

    return change


def test_text_comes_back_as_it_was_and_has_the_librarys_own_ids(tokenizer, directory):
    own = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in [*ADVERSARIAL, *random_texts(3, 50)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_array(text).tolist() == ids
        if "<|" not in text:
            assert ids == own.encode(text).ids
    assert tokenizer.spells_space_mark and not tokenizer.normalizes


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab <|im_end>\u0120\u2581\n1"))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_none_becomes_a_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=3) >= 3


def test_text_becomes_a_control_token_only_where_that_is_asked_for(tokenizer):
    text = "<|im_start|>user\nwhat is <|endoftext|>?<|im_end|>"
    assert not set(tokenizer.encode(text)) & {0, 1, 2}
    assert tokenizer.decode(tokenizer.encode(text)) == text
    marked = tokenizer.encode_marked(text)
    assert [token for token in marked if token < 3] == [1, 0, 2]
    assert tokenizer.decode(marked) == "user\nwhat is ?"
    assert tokenizer.encode_marked("") == []


def test_sentencepieces_control_tokens_can_be_asked_for_too(tmp_path):
    tokenizer = open_tokenizer(train_small_tokenizer(tmp_path))
    special = tokenizer.special_tokens
    expected = [special["<|user|>"], *tokenizer.encode("a <b>"), special["</s>"]]
    assert tokenizer.encode_marked("<|user|>a <b></s>") == expected


def test_what_it_says_of_itself(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (330, 2)
    assert tokenizer.special_tokens == dict(zip(CONTROL, range(3), strict=True))
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.identity.vocab_size == 330
    assert tokenizer.files.content.keys() == {"tokenizer.json", "tokenizer_config.json"}
    for wrong in (330, -1):
        with pytest.raises(IndexError, match=f"token id {wrong} is outside the vocabulary of 330"):
            tokenizer.decode([wrong])


def test_the_file_alone_and_its_directory_are_the_same_tokenizer(tokenizer, directory):
    other = open_tokenizer(directory / "tokenizer.json")
    assert (other.identity, other.files.content) == (tokenizer.identity, tokenizer.files.content)
    assert type(other) is JsonTokenizer


def test_a_tokenizer_is_recognized_by_what_is_in_the_file(directory, tmp_path):
    (tmp_path / "odd.model").write_bytes((directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert open_tokenizer(tmp_path).eod_id == 0
    model = train_small_tokenizer(tmp_path)
    (tmp_path / "in").mkdir()
    model.rename(tmp_path / "in" / "any.model")
    assert type(open_tokenizer(tmp_path / "in")) is SentencePieceTokenizer


def test_of_two_in_a_directory_the_model_is_taken_unless_the_other_knows_more(changed, tmp_path, directory):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(train_small_tokenizer(tmp_path, 350).read_bytes())
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    more = [{**added[0], "id": 330 + i, "content": f"<{i}>"} for i in range(21)]
    for count, kind in ((19, JsonTokenizer), (20, SentencePieceTokenizer), (21, JsonTokenizer)):
        assert type(changed(added_tokens=[*added, *more[:count]])) is kind
    model.write_bytes(b"IQ== 0\n")  # as tiktoken writes
    assert type(changed(added_tokens=[*added, *more[:20]])) is JsonTokenizer


def test_the_end_of_a_document_is_found_beside_the_tokenizer(changed, tmp_path):
    with pytest.raises(DataError, match="does not say what ends a document: name it as eos_token in tokenizer_config"):
        changed({"model_max_length": 5})
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 2]}')
    found = changed({"model_max_length": 5})
    assert found.eod_id == 1
    # config.json is the model's and does not travel with the tokenizer; what it said does.
    assert json.loads(found.files.content["generation_config.json"]) == {"eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert changed({"model_max_length": 5}).eod_id == 2
    assert changed({"eos_token": "<|endoftext|>"}).eod_id == 0
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 330}')
    with pytest.raises(DataError, match="eos_token_id 330 is none of its tokens"):
        changed({"model_max_length": 5})
    with pytest.raises(DataError, match=r"eos_token '<eos>' of tokenizer_config\.json is none of its tokens"):
        changed({"eos_token": "<eos>"})


def test_what_a_file_says_about_batches_and_training_changes_no_ids(changed, tokenizer):
    other = changed(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        model__dropout=0.5,
        post_processor={"type": "BertProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1]},
    )  # fmt: skip
    for text in random_texts(1, 5):
        assert other.encode(text) == tokenizer.encode(text)
    # But it says what the model saw before each text.
    assert (other.beginning, tokenizer.beginning) == ((1,), ())
    assert other.encode_prompt("a") == [1, *tokenizer.encode("a")]


def test_tokens_that_were_added_are_counted(changed, directory):
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    more = [{**added[0], "id": 330, "content": "<tool>", "special": False}, {**added[0], "id": 331, "content": "<x>"}]
    tokenizer = changed(added_tokens=[*added, *more])
    assert tokenizer.vocab_size == 332
    assert tokenizer.encode("a<tool>") == [*tokenizer.encode("a"), 330]  # not marked special: text
    assert tokenizer.decode([330]) == "<tool>"
    assert "<x>" in tokenizer.special_tokens and "<tool>" not in tokenizer.special_tokens
    with pytest.raises(DataError, match="its '<x>' would have the id 331, not 335: an id before it is missing"):
        changed(added_tokens=[*added, more[0], {**more[1], "id": 335}])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "is WordPiece: of a tokenizer.json only BPE is read"),
        ({"model": 5}, "is no tokenizer.json: it has no model with a vocab"),
        ({"decoder": None}, "is BPE of characters alone: only one with all bytes keeps every text"),
        ({"model__vocab": {"a": 0}}, r"lacks \d+ bytes, such as 0x09: text would get lost"),
        ({"model__merges": [["q", "zz"]]}, "is no tokenizer.json that can be read: "),
    ],
)
def test_another_kind_of_file_is_refused_in_one_sentence(changed, keys, said):
    with pytest.raises(DataError, match=said) as caught:
        changed(**keys)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_rare_bytes_may_be_missing_and_what_they_begin_is_known(changed, directory, tokenizer):
    # SmolLM2's vocabulary lacks 0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1 and 0xF2, and those that UTF-8 never has.
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    for byte in (0x04, 0x1D, 0xC0, 0xF1, 0xFF):
        letter = json_tokenizer._byte_letters()[byte]
        vocabulary[f"\u0120\u0120\u0120{letter}"] = vocabulary.pop(letter)
    other = changed(model__vocab=vocabulary)
    assert tokenizer.unspelled is None
    text = "a\x04b\x05\x1d\U0003ffff\U00040000\U0007ffff\U00080000"
    assert other.unspelled.findall(text) == ["\x04", "\x1d", "\U00040000", "\U0007ffff"]
    kept = other.unspelled.sub("", text)
    assert other.decode(other.encode(kept)) == kept
    assert other.decode(other.encode("a\x04b")) == "ab"


def test_letters_of_bytes_are_the_librarys():
    assert sorted(json_tokenizer._byte_letters()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_an_end_of_document_that_text_can_spell_is_refused(changed, directory):
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    with pytest.raises(DataError, match=r"makes a control token of the text '<\|im_end\|>': mark it as special"):
        changed(added_tokens=[{**one, "special": one["id"] != 2} for one in added])


def test_a_directory_without_one_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the directory holds neither tokenizer\.json nor a \.model file"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        open_tokenizer(tmp_path / "gone")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged: it holds no JSON object"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for name in "ab":
        (tmp_path / f"{name}.model").touch()
    with pytest.raises(DataError, match=r"holds several \.model files: a\.model, b\.model"):
        open_tokenizer(tmp_path)


def test_without_the_library_the_package_is_named(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    json_tokenizer.library.cache_clear()
    with pytest.raises(UsageError, match=r"takes the package tokenizers: pip install 'megatron_lite\[data\]'"):
        open_tokenizer(directory)
    json_tokenizer.library.cache_clear()


def test_a_normalizer_is_known(changed):
    assert changed(normalizer={"type": "NFC"}).normalizes
    assert changed(normalizer={"type": "NFC"}).spells_space_mark
    lossy = changed(normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
    assert not lossy.spells_space_mark and not lossy._cuts_at_words


def test_long_texts_are_tokenized_in_blocks_with_the_same_ids(tokenizer, monkeypatch):
    texts = ["".join(random_texts(seed, 30)) for seed in range(5)] + [text * 3 for text in ADVERSARIAL]
    whole = [tokenizer.encode(text) for text in texts]
    assert tokenizer._cuts_at_words
    for size in (1, 5, 64):
        monkeypatch.setattr(tokenizer_module, "BLOCK_CHARACTERS", size)
        assert [tokenizer.encode(text) for text in texts] == whole


def test_one_with_tokens_across_words_is_not_cut(changed, directory):
    tree = json.loads((directory / "tokenizer.json").read_text())["model"]
    word = {"a\u0120m": 330}
    other = changed(model={**tree, "vocab": {**tree["vocab"], **word}}, pre_tokenizer={
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})  # fmt: skip
    assert not other._cuts_at_words


def test_it_is_no_model_for_the_fast_encoder(directory):
    tokenizer, line = fast_tokenizer(str(directory), ["a"])
    assert type(tokenizer) is JsonTokenizer
    assert line == f"tokenizing with the tokenizers library: {directory} is a tokenizer.json"


def test_ids_are_int32(tokenizer):
    assert tokenizer.encode_array("a b").dtype == np.int32
