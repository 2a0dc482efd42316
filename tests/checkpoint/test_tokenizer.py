"""A checkpoint carries its tokenizer and chat template, whatever becomes of the path that they came from."""

import shutil
from pathlib import Path

import pytest
from support.checkpoints import untrained
from support.layouts import Layout
from support.text import train_byte_level, train_small_tokenizer

from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.data.open_tokenizer import open_tokenizer
from megatron_lite.errors import DataError
from megatron_lite.inference.text import find_tokenizer

SMALL = Layout(layers=2)
KINDS = {
    "model": (train_small_tokenizer, {"tokenizer.model", "chat_template.jinja"}),
    "json": (train_byte_level, {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}),
}


@pytest.fixture(params=KINDS)
def origin(request, tmp_path):
    """A tokenizer's path with a chat template beside it, and the files that go with a checkpoint."""
    train, files = KINDS[request.param]
    (tmp_path / "origin").mkdir()
    path = train(tmp_path / "origin")
    (tmp_path / "origin" / "chat_template.jinja").write_text("{{ turn }}")
    return path, files


def saved(directory: Path, tokenizer, vocab_size: int = 500):
    trainer = untrained(SMALL, vocab_size=vocab_size)
    save(directory, trainer, 1, 12, tokenizer=tokenizer)
    return open_checkpoint(directory, trainer.mesh)


def test_the_tokenizer_is_found_in_the_checkpoint_after_its_origin_has_gone(origin, tmp_path):
    path, names = origin
    tokenizer = open_tokenizer(path)
    shutil.rmtree(tmp_path / "origin")  # before the save, too
    checkpoint = saved(tmp_path / "checkpoints", tokenizer)
    assert names <= checkpoint.index.files.keys()
    carried = find_tokenizer(checkpoint, None)
    assert (carried.identity, carried.files.content) == (tokenizer.identity, tokenizer.files.content)
    assert carried.chat_template == "{{ turn }}"
    assert open_tokenizer(checkpoint.path).encode("a shard") == tokenizer.encode("a shard")
    again = saved(tmp_path / "again", carried)
    for name in names:
        assert (again.path / name).read_bytes() == (checkpoint.path / name).read_bytes()


def test_a_carried_file_that_was_altered_is_a_damaged_checkpoint(origin, tmp_path):
    checkpoint = saved(tmp_path / "checkpoints", open_tokenizer(origin[0]))
    (checkpoint.path / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(DataError, match=r"chat_template\.jinja has .* the checkpoint is damaged"):
        open_checkpoint(checkpoint.path, untrained(SMALL).mesh)


def test_without_a_tokenizer_none_is_carried(tmp_path):
    checkpoint = saved(tmp_path, None)
    assert checkpoint.tokenizer is None
    assert not {"tokenizer.model", "tokenizer.json", "chat_template.jinja"} & checkpoint.index.files.keys()


def test_one_that_does_not_fit_the_checkpoint_is_refused(origin, tmp_path):
    tokenizer = open_tokenizer(origin[0])
    checkpoint = saved(tmp_path / "checkpoints", tokenizer)
    other = train_byte_level(tmp_path / "other", vocab_size=300)
    with pytest.raises(DataError, match=r"has sha256 .* was trained with"):
        find_tokenizer(checkpoint, str(other))
    small = saved(tmp_path / "small", tokenizer, vocab_size=100)
    with pytest.raises(DataError, match=rf"has {tokenizer.vocab_size} tokens, .* knows 100") as caught:
        find_tokenizer(small, None)
    assert caught.value.exit_code == 3
