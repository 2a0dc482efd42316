"""An adapter's checkpoint is asked like any other: merged as it is loaded, on any layout, with its own tokenizer."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.adapted import IDS, LAYOUT, adapted, unmerged_logits
from support.checkpoints import untrained
from support.generation import ONE
from support.layouts import Layout
from support.text import train_small_tokenizer

from megatron_lite import generate
from megatron_lite.checkpoint import save
from megatron_lite.config import resolve
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.errors import DataError
from megatron_lite.exchange import convert
from megatron_lite.exchange.origin import open_origin
from megatron_lite.inference.opening import load_model
from megatron_lite.inference.text import find_tokenizer
from megatron_lite.mesh import MeshShape, build_mesh


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """An adapter's run on a base beside it, `base`, with a tokenizer; and its logits in units with adapters."""
    path = tmp_path_factory.mktemp("adapter")
    tokenizer = SentencePieceTokenizer(train_small_tokenizer(path))
    sizes = {"vocab_size": tokenizer.vocab_size}
    plain = untrained(Layout(layers=2), **sizes)
    save(path / "base" / "checkpoints", plain, 1, 12)
    config = LAYOUT.config()
    config = config.model_copy(update={"model": plain.config.model})
    trainer = adapted(LAYOUT, path / "base", config)
    save(path / "run" / "checkpoints", trainer, 1, 12, base=trainer.base, tokenizer=tokenizer)
    return path / "run", unmerged_logits(trainer)


def logits_here(layout: Layout, path: Path) -> torch.Tensor:
    mesh = build_mesh(MeshShape.of(resolve(layout.config(), layout.world)), torch.device("cpu"))
    layout_keys = (f"parallel.tensor={layout.tensor}", f"parallel.pipeline={layout.pipeline}")
    return load_model(open_origin(path, mesh), mesh, layout_keys).logits(IDS)


def test_it_has_the_logits_of_the_units_with_adapters_on_any_layout(ranks, run):
    path, unmerged = run
    merged = logits_here(Layout(layers=2), path)
    assert (merged - unmerged).abs().max() / unmerged.abs().max() < 1e-13
    for logits in ranks.run(logits_here, 2, replace(Layout(layers=2), tensor=2), path):
        assert (logits - unmerged).abs().max() / unmerged.abs().max() < 1e-12


def call(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["generate", *map(str, arguments)])
    generate.main()
    return capsys.readouterr().out


def test_the_command_writes_what_the_merged_model_writes_and_finds_a_base_that_moved(
    run, tmp_path, monkeypatch, capsys
):
    path, _ = run
    convert(path, tmp_path / "merged", "ours", merge=True)
    words = ("--prompt", "the model", "--max-new-tokens", "6", "--temperature", "0")
    said = call(monkeypatch, capsys, tmp_path / "merged", *words)
    assert said and call(monkeypatch, capsys, path, *words) == said
    moved = tmp_path / "moved"
    base = path.parent / "base"
    base.rename(moved)
    try:
        assert call(monkeypatch, capsys, path, *words, "--base", moved) == said
        with pytest.raises(DataError, match=r"base.* is not there: give its place"):
            call(monkeypatch, capsys, path, *words)
        with pytest.raises(DataError, match="it must be the very model that was trained on"):
            call(monkeypatch, capsys, path, *words, "--base", tmp_path / "merged")
    finally:
        moved.rename(base)


def test_an_adapter_without_a_tokenizer_has_its_bases(run, tmp_path):
    path, _ = run
    convert(path, tmp_path / "base", "ours", merge=True)
    config = LAYOUT.config().model_copy(update={"model": open_origin(path, ONE).model})
    trainer = adapted(LAYOUT, tmp_path / "base", config)
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    ours, theirs = (find_tokenizer(open_origin(one, ONE), None) for one in (tmp_path / "run", path))
    assert ours.identity == theirs.identity
