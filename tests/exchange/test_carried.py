"""A checkpoint's tokenizer goes to Hugging Face and comes back, with the same ids and the same end of a document."""

import shutil

import pytest
from support.checkpoints import untrained
from support.layouts import Layout
from support.text import train_byte_level, train_small_tokenizer

from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.data.fast_tokenizer import ADVERSARIAL
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.exchange.convert import convert
from megatron_lite.inference.text import find_tokenizer


@pytest.mark.parametrize("train", [train_small_tokenizer, train_byte_level])
def test_a_tokenizer_goes_out_and_comes_back_with_its_ids(tmp_path, train):
    (tmp_path / "origin").mkdir()
    tokenizer = open_tokenizer(train(tmp_path / "origin"))
    trainer = untrained(Layout(layers=2, dtype="float32"), vocab_size=500)
    save(tmp_path / "run", trainer, 1, 12, tokenizer=tokenizer)
    done = convert(tmp_path / "run", tmp_path / "hf", "hf")
    assert not any("tokenizer" in what for what in done.left_out)
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    convert(tmp_path / "hf", tmp_path / "back", "ours")
    shutil.rmtree(tmp_path / "origin")
    back = find_tokenizer(open_checkpoint(tmp_path / "back", trainer.mesh), None)
    assert back.eod_id == tokenizer.eod_id
    for text in ADVERSARIAL[:12]:
        assert back.encode(text) == tokenizer.encode(text)


def test_an_end_of_document_that_config_json_alone_names_is_known_in_the_checkpoint(tmp_path):
    (tmp_path / "origin").mkdir()
    tokenizer = open_tokenizer(train_byte_level(tmp_path / "origin"))
    trainer = untrained(Layout(layers=2, dtype="float32"), vocab_size=500)
    save(tmp_path / "run", trainer, 1, 12, tokenizer=tokenizer)
    convert(tmp_path / "run", tmp_path / "hf", "hf")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).unlink(missing_ok=True)
    convert(tmp_path / "hf", tmp_path / "back", "ours")
    assert find_tokenizer(open_checkpoint(tmp_path / "back", trainer.mesh), None).eod_id == tokenizer.eod_id
