"""The classic mistakes of a conversion, planted one at a time: each moves logits, or is refused."""

import pytest
import torch
from exchange.models import IDS, distance, logits_of, model_of, weights_of, write_gguf, write_hf
from support import reference
from support.checkpoints import untrained
from support.layouts import Layout

from megatron_lite.errors import DataError
from megatron_lite.exchange import architectures, convert, gguf, hugging_face, source
from megatron_lite.exchange.gguf_file import mapped_to
from megatron_lite.exchange.verify import BOUND

MODEL = model_of()
WEIGHTS = weights_of(MODEL)


def forget_permutation(monkeypatch):
    monkeypatch.setattr(gguf, "halves_from_pairs", lambda weight, heads: weight)


def permute_queries_alone(monkeypatch):
    right = gguf.halves_from_pairs

    def of_queries(weight, heads):
        return right(weight, heads) if heads == MODEL.num_attention_heads else weight

    monkeypatch.setattr(gguf, "halves_from_pairs", of_queries)


def swap_gate_and_up(monkeypatch):
    names = {**gguf.OF_BLOCK, "ffn_gate": gguf.OF_BLOCK["ffn_up"], "ffn_up": gguf.OF_BLOCK["ffn_gate"]}
    monkeypatch.setattr(gguf, "OF_BLOCK", names)


def forget_base(monkeypatch):
    monkeypatch.setattr(gguf, "REALS", {"rms_norm_eps": gguf.REALS["rms_norm_eps"]})


def forget_eps(monkeypatch):
    monkeypatch.setattr(gguf, "REALS", {"rope_theta": gguf.REALS["rope_theta"]})


def permute_what_needs_none(monkeypatch):
    """Hugging Face's rows, turned as if they were llama.cpp's."""
    right = hugging_face.fitting

    def fitting(path, model, found):
        return right(path, model, {name: gguf._rows_in_order(name, one, model) for name, one in found.items()})

    monkeypatch.setattr(hugging_face, "fitting", fitting)


def stride_groups(monkeypatch):
    """Query heads 0, 3, 1, 4, .. for 0, 1, 2, ..: as if a key-value head's queries lay apart."""
    right = hugging_face.fitting

    def strided(weight):
        return weight.unflatten(0, (2, MODEL.num_key_value_heads, -1)).transpose(0, 1).flatten(0, 2)

    def fitting(path, model, found):
        changed = {name: mapped_to(one, strided) if "q_proj" in name else one for name, one in found.items()}
        return right(path, model, changed)

    monkeypatch.setattr(hugging_face, "fitting", fitting)


def ignore_rope_theta(monkeypatch):
    monkeypatch.setattr(architectures, "_rope", lambda tree, where: (10000.0, None))


def take_the_default_eps(monkeypatch):
    carried = tuple(key for key in architectures.CARRIED if key != "rms_norm_eps")
    monkeypatch.setattr(architectures, "CARRIED", carried)
    monkeypatch.setattr(architectures, "HARMLESS", architectures.HARMLESS | {"rms_norm_eps"})


OF_GGUF = (forget_permutation, permute_queries_alone, swap_gate_and_up, forget_base, forget_eps)
OF_DIRECTORIES = (permute_what_needs_none, stride_groups, ignore_rope_theta, take_the_default_eps)


@pytest.mark.parametrize("mistake", [*OF_GGUF, *OF_DIRECTORIES], ids=lambda mistake: mistake.__name__)
def test_each_mistake_moves_logits_far_beyond_the_bound(mistake, tmp_path, monkeypatch):
    if mistake in OF_GGUF:
        path = write_gguf(tmp_path / "m.gguf", MODEL, WEIGHTS)
    else:
        path = write_hf(tmp_path / "hf", MODEL, WEIGHTS)
    convert(path, tmp_path / "right", "ours")
    mistake(monkeypatch)
    convert(path, tmp_path / "wrong", "ours")
    assert distance(tmp_path / "right", MODEL, WEIGHTS) < 1e-10
    assert distance(tmp_path / "wrong", MODEL, WEIGHTS) > 10 * BOUND


def test_padding_of_the_vocabulary_would_move_the_softmax(tmp_path):
    """61 pieces are 64 rows here; the logits that are compared are 61, and their softmax is the plain model's."""
    convert(write_hf(tmp_path / "hf", MODEL, WEIGHTS), tmp_path / "ours", "ours")
    ours = logits_of(tmp_path / "ours")
    exact = {name: weight.double() for name, weight in WEIGHTS.items()}
    expected = reference.logits(exact, IDS[None], MODEL)[0].log_softmax(-1)
    assert (ours.log_softmax(-1) - expected).abs().max() < 1e-10
    padded = torch.cat([ours, torch.zeros(len(IDS), 3)], 1).log_softmax(-1)[:, :61]
    assert (padded - expected).abs().max() > BOUND


def test_a_shard_that_is_dropped_is_missed(tmp_path):
    path = write_hf(tmp_path / "hf", MODEL, WEIGHTS, files=3)
    last = path / "model-00003-of-00003.safetensors"
    last.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"model-00003-of-00003\.safetensors is missing, though .*index\.json lists it"):
        convert(path, tmp_path / "ours", "ours")
    index = path / "model.safetensors.index.json"
    lines = index.read_text()
    for name in WEIGHTS:
        lines = lines.replace(f', "{name}": "{last.name}"', "")
    index.write_text(lines)
    with pytest.raises(DataError, match=r"has no tensor model\.layers\..*, which the model needs, and \d+ more"):
        convert(path, tmp_path / "ours", "ours")


def test_every_parameter_is_the_models_own():
    """The list that a source is held against is the one that training has."""
    trainer = untrained(Layout())
    boxes = (box for shards in trainer.stage.shards for _, box in shards.layout.boxes(0))
    trained = {box.logical.name: box.logical.shape for box in boxes}
    assert source.shapes_of(trainer.config.model) == trained
