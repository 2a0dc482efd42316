import json

import peers
import pytest
import sentencepiece
import tokenizers
from exchange.test_transformers import VERSIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from support.text import random_texts, train_byte_level, train_small_tokenizer

from megatron_lite.data.fast_tokenizer import ADVERSARIAL
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError
from megatron_lite.exchange.tokenizers import hugging_face_files

AS_IT_STANDS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SP = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}


def train_foreign(directory, **options):
    (directory / "texts").write_text("the model reads a shard of text, caf\u00e9 \u00bd  aaaa aa\n" * 200)
    model = {"input": directory / "texts", "model_prefix": directory / "m"}
    sentencepiece.SentencePieceTrainer.train(**model, **(SP | options))
    return directory / "m.model"


def exported(path, directory, chat_template=None):
    directory.mkdir()
    for name, content in hugging_face_files(path, chat_template).items():
        (directory / name).write_bytes(content)
    alone = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    alone.encode_special_tokens = True
    return alone


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A SentencePiece tokenizer, and what the library makes of the file that was written."""
    directory = tmp_path_factory.mktemp("pair")
    path = train_small_tokenizer(directory)
    return SentencePieceTokenizer(path), exported(path, directory / "hf", "{{ turn }}"), directory / "hf"


def test_ids_are_sentencepieces_and_text_comes_back(pair):
    ours, theirs, _ = pair
    texts = [*ADVERSARIAL, *random_texts(7, 100), "".join(random_texts(8, 300)), " " * 100_000 + "a" * 100_000]
    for text in texts:
        ids = ours.encode(text)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab \u2581\n\u00e9\u0301<s>1") | st.text("the mod "))
@settings(max_examples=300, deadline=None)
def test_any_text_has_sentencepieces_ids(pair, text):
    ours, theirs, _ = pair
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.decode(theirs.encode(text).ids) == text


def test_special_tokens_keep_their_ids_and_are_named_by_what_they_do(pair):
    ours, theirs, directory = pair
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))  # marks stand for tokens unless asked
    assert theirs.encode("<|user|>a</s>").ids == ours.encode_marked("<|user|>a</s>")
    assert theirs.encode("a").ids == ours.encode("a")  # and none comes unasked
    assert all(theirs.token_to_id(name) == index for name, index in ours.special_tokens.items())
    assert theirs.get_vocab_size() == ours.vocab_size
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert [config[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")] == ["<s>", "</s>", "<unk>", "<pad>"]
    assert not config["add_bos_token"] and not config["clean_up_tokenization_spaces"]


def test_what_was_written_opens_here_as_it_was(pair, tmp_path):
    ours, _, directory = pair
    again = open_tokenizer(directory)
    assert again.identity == ours.identity and again.chat_template == "{{ turn }}"
    assert hugging_face_files(directory) == {p.name: p.read_bytes() for p in directory.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    alone = open_tokenizer(tmp_path)
    assert type(alone) is JsonTokenizer
    assert (alone.eod_id, alone.special_tokens, alone.vocab_size) == (ours.eod_id, ours.special_tokens, ours.vocab_size)
    assert alone.spells_space_mark and alone._cuts_at_words


def test_bytes_that_are_no_characters_take_whole_ones_beside_them_along(pair):
    # The one thing that the library's decoder does otherwise; no text has such ids.
    ours, theirs, _ = pair
    first = next(i for i in range(ours.vocab_size) if ours.is_byte(i))
    ids = [*(first + byte for byte in "\u00e9".encode()), first + 0xFF]
    assert ours.decode(ids) == "\u00e9\ufffd"
    assert theirs.decode(ids) == "\ufffd" * 3
    assert theirs.decode(ids[:2]) == "\u00e9"


@pytest.mark.parametrize(
    "options",
    [
        AS_IT_STANDS,  # with a space before the text, as Llama 2's
        AS_IT_STANDS | {"add_dummy_prefix": False, "split_by_whitespace": False},
        AS_IT_STANDS | {"add_dummy_prefix": False},
    ],
)
def test_other_trainers_models_of_this_kind_are_written_too(tmp_path, options):
    path = train_foreign(tmp_path, **options)
    ours, theirs = SentencePieceTokenizer(path), exported(path, tmp_path / "hf")
    for text in [*ADVERSARIAL, *random_texts(0, 50)]:
        assert theirs.encode(text).ids == ours.encode(text)
        if "\u2581" not in text:
            assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (AS_IT_STANDS | {"model_type": "unigram", "hard_vocab_limit": False}, "it is no byte pair encoding"),
        ({"normalization_rule_name": "nfkc"}, "it normalizes text"),
        (AS_IT_STANDS | {"user_defined_symbols": ["<tool>"]}, "it has pieces of its user's"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(tmp_path, options, reason):
    path = train_foreign(tmp_path, **options)
    with pytest.raises(DataError, match=f"cannot become a tokenizer.json: {reason}"):
        hugging_face_files(path)


def test_a_tokenizer_json_goes_unchanged_with_what_lies_beside_it(tmp_path):
    origin = train_byte_level(tmp_path / "origin")
    (origin / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    (origin / "README.md").write_text("not the tokenizer's")
    exported(origin, tmp_path / "hf", "{{ turn }}")
    names = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {*names, "chat_template.jinja"}
    for name in names:
        assert (tmp_path / "hf" / name).read_bytes() == (origin / name).read_bytes()
    assert open_tokenizer(tmp_path / "hf").chat_template == "{{ turn }}"


TRANSFORMERS = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.loads(Path(sys.argv[2]).read_text())
ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]
chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
print(json.dumps([ids, [tokenizer.decode(one) for one in ids], tokenizer.eos_token_id, len(tokenizer), chat]))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["model", "json"])
@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_opens_what_was_written(tmp_path, kind, version):
    path = train_small_tokenizer(tmp_path) if kind == "model" else train_byte_level(tmp_path / "origin")
    exported(path, tmp_path / "hf", "{{ messages[0]['content'] }}!")
    ours = open_tokenizer(path)
    texts = [*ADVERSARIAL, *random_texts(0, 20)]
    (tmp_path / "texts").write_text(json.dumps(texts))
    said = peers.run_with_peer(version, ["-c", TRANSFORMERS, str(tmp_path / "hf"), str(tmp_path / "texts")])
    ids, decoded, eos, size, chat = json.loads(said.splitlines()[-1])
    assert ids == [ours.encode(text) for text in texts]
    assert decoded == texts
    assert (eos, size, chat) == (ours.eod_id, ours.vocab_size, "hi!")
