"""Reward models in and out, as transformers' sequence classification with one label."""

import json
from pathlib import Path

import pytest
import torch
from exchange.models import write_hf
from exchange.peft_answers import IDS
from exchange.test_peft import ANSWERS, write_as_peft_did, write_base
from support.checkpoints import stamp, untrained
from support.layouts import Layout

from megatron_lite.checkpoint import save
from megatron_lite.errors import DataError
from megatron_lite.exchange import convert, open_source

LAYOUT = Layout(layers=2, head="scalar", dtype="float32")


def written(directory: Path) -> Path:
    """A reward model of ours, converted."""
    trainer = untrained(LAYOUT)
    stamp(trainer, 3)
    save(directory / "run", trainer, 1, 12)
    convert(directory / "run", directory / "hf", "hf")
    return directory / "hf"


def test_a_reward_model_goes_out_as_one_of_one_label_and_comes_back_to_the_bit(tmp_path):
    path = written(tmp_path)
    config = json.loads((path / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForSequenceClassification"], "llama")
    assert (config["id2label"], config["tie_word_embeddings"]) == ({"0": "LABEL_0"}, False)
    convert(path, tmp_path / "back", "ours")
    ours, back = open_source(tmp_path / "run"), open_source(tmp_path / "back")
    assert back.model == ours.model and back.model.head == "scalar"
    assert "score.weight" in back.parameters and "lm_head.weight" not in back.parameters
    for name, stored in ours.parameters.items():
        assert torch.equal(stored.read(), back.parameters[name].read())


def test_a_directory_of_qwen3_that_says_its_number_of_labels_is_read(tmp_path):
    source = open_source(written(tmp_path))
    model = source.model.model_copy(update={"qk_norm": True})
    weights = {name: stored.read() for name, stored in source.parameters.items()}
    heads = {f"model.layers.{layer}.self_attn.{n}_norm.weight": torch.ones(8) for layer in range(2) for n in "qk"}
    path = write_hf(
        tmp_path / "qwen3", model, weights | heads, architectures=["Qwen3ForSequenceClassification"],
        model_type="qwen3", num_labels=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    assert (open_source(path).model.head, open_source(path).model.tie_word_embeddings) == ("scalar", False)


@pytest.mark.parametrize("labels", [{"id2label": {"0": "A", "1": "B"}}, {"id2label": None}, {"num_labels": 3}])
def test_another_number_of_labels_is_refused(tmp_path, labels):
    path = written(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **labels}))
    count = labels.get("num_labels", 2)
    with pytest.raises(DataError, match=f"num_labels = {count}: must be 1, the score of a reward model"):
        open_source(path)


@pytest.mark.nightly
def test_a_merged_reward_models_score_is_what_peft_gave_in_transformers_too(tmp_path):
    import transformers

    convert(write_as_peft_did(tmp_path / "peft", "scalar", write_base(tmp_path / "base")), tmp_path / "hf", "hf")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", dtype=torch.float64)
    with torch.no_grad():
        score = model.eval()(torch.tensor([IDS]), use_cache=False).logits
    assert score.shape == (1, 1)
    assert score.item() == pytest.approx(ANSWERS["scalar"]["loss"], rel=1e-6)
