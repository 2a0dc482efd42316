"""Which chat template a run has, and that its tokenizer carries it."""

from pathlib import Path

import pytest
from support.chat_templates import CHATML, PLAIN, tokenizer_directory
from support.text import train_small_tokenizer

from megatron_lite.alignment.template import BUILT_IN, find_template, with_template
from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.errors import DataError, UsageError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> JsonTokenizer:
    return JsonTokenizer(tokenizer_directory(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_small_tokenizer(tmp_path_factory.mktemp("small")))


def opened_again(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    for name, content in tokenizer.files.content.items():
        (folder / name).write_bytes(content)
    return open_tokenizer(folder)


def test_a_file_comes_before_the_tokenizers_own_template_and_that_before_the_built_in_one(tmp_path, tokenizer, ours):
    (tmp_path / "mine.jinja").write_text("{{ 'mine é' }}", encoding="utf-8")
    assert find_template(tokenizer, str(tmp_path / "mine.jinja")) == "{{ 'mine é' }}"
    assert find_template(tokenizer, None) == CHATML
    assert find_template(ours, None) == BUILT_IN.read_text(encoding="utf-8")


def test_a_file_that_is_none_or_no_text_is_named(tmp_path, tokenizer):
    with pytest.raises(UsageError, match=r"none\.jinja: No such file or directory; must be a file with a Jinja"):
        find_template(tokenizer, str(tmp_path / "none.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(UsageError, match=r"latin\.jinja: is no UTF-8"):
        find_template(tokenizer, str(tmp_path / "latin.jinja"))


def test_a_tokenizer_without_a_template_gets_the_built_in_one_and_carries_it(ours, tmp_path):
    carrying = with_template(ours, find_template(ours, None))
    assert carrying.chat_template == BUILT_IN.read_text() and carrying.identity == ours.identity
    again = opened_again(carrying, tmp_path)
    assert find_template(again, None) == BUILT_IN.read_text() and again.stop_ids == {ours.eod_id}


def test_an_end_of_turn_that_is_no_end_of_document_joins_the_stop_ids(tokenizer, tmp_path):
    carrying = opened_again(with_template(tokenizer, PLAIN["llama3"]), tmp_path)
    assert carrying.stop_ids == {tokenizer.eod_id, tokenizer.special_tokens["<|eot_id|>"]}
    assert carrying.eod_id == tokenizer.eod_id


def test_a_template_that_cannot_be_trained_with_is_carried_by_no_tokenizer(ours):
    with pytest.raises(DataError, match=f"the chat template of {ours.path} cannot be trained with"):
        with_template(ours, "{{ messages[0].content }}")
