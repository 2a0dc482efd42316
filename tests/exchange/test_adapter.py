"""An adapter on a base of any kind: begun, saved for itself, gone on with, merged, and never put on another base."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exchange.models import model_of, weights_of, write_hf
from safetensors.torch import load_file, save_file
from support.adapted import (
    IDS,
    KINDS,
    LAYOUT,
    LORA,
    adapted,
    base_weights,
    merged_by_hand,
    plain_logits,
    unmerged_logits,
    weights_in,
    write_base,
)
from support.checkpoints import assert_same, error_of, owned, spoil, train, untrained, whole
from support.generation import ONE
from support.layouts import Layout, assemble, owned_blocks

from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.config import ModelConfig
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import convert, open_source
from megatron_lite.exchange.origin import begin, load_origin, notes_of, open_origin, resume
from megatron_lite.inference.opening import load_model

MODEL = LAYOUT.config().model


def save_adapter(directory: Path, base: Path, steps: int = 0):
    """Its trainer, after saving run/step_1."""
    trainer = adapted(LAYOUT, base)
    train(trainer, range(1, steps + 1))
    save(directory, trainer, 1, 12, base=trainer.base)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_base_and_its_adapter_as_if_it_had_not_stopped(tmp_path, kind):
    base = write_base(tmp_path / "base", kind, MODEL)
    truth = save_adapter(tmp_path / "run", base, steps=2)
    before = {name: w for name, w in weights_in(truth).items() if ".lora_" not in name}
    assert all(torch.equal(before[name], w.double()) for name, w in base_weights(MODEL).items())

    again = untrained(LAYOUT)
    spoil(again)
    state, stands_on = resume(open_checkpoint(tmp_path / "run", ONE), again, None)
    assert (state.step, again.optimizer.updates, stands_on) == (1, 2, truth.base)
    assert_same(whole([owned(again)]), whole([owned(truth)]))
    assert train(again, range(3, 5)) == train(truth, range(3, 5))
    assert_same(whole([owned(again)]), whole([owned(truth)]))


def test_a_base_is_known_by_its_weights_whatever_holds_them_and_wherever_it_lies(tmp_path):
    base = write_base(tmp_path / "base", "hf", MODEL)
    save_adapter(tmp_path / "run", base)
    checkpoint = open_checkpoint(tmp_path / "run", ONE)
    convert(base, tmp_path / "ours", "ours")
    base.rename(tmp_path / "moved")
    gone = f"stands on {base} (checksum {checkpoint.index.main.base.xxh3}), and {base} is not there"
    assert gone in error_of(resume, checkpoint, untrained(LAYOUT), None)
    assert gone in error_of(open_origin, tmp_path / "run", ONE)
    for place in ("moved", "ours"):
        assert resume(checkpoint, untrained(LAYOUT), str(tmp_path / place))[0].step == 1
        assert open_origin(tmp_path / "run", ONE, tmp_path / place).adapter.lora == LORA


@pytest.mark.parametrize("change", ["a weight", "rope_theta"])
def test_another_base_is_refused_by_both_checksums(tmp_path, change):
    base = write_base(tmp_path / "base", "hf", MODEL)
    recorded = save_adapter(tmp_path / "run", base).base
    shutil.rmtree(base)
    weights = base_weights(MODEL)
    if change == "a weight":
        weights["model.norm.weight"][3] += 1
    write_hf(base, MODEL, weights, **({} if change == "a weight" else {"rope_theta": 9999.0}))
    said = error_of(open_origin, tmp_path / "run", ONE)
    assert f"stands on {base} with the checksum {recorded.xxh3}; {base} has " in said
    assert said.endswith("it must be the very model that was trained on")


def test_merged_weights_are_the_closed_forms_and_their_logits_those_of_the_units_with_adapters(tmp_path):
    """In float64 to rounding; so merging as a model is loaded is exact."""
    trainer = save_adapter(tmp_path / "run", write_base(tmp_path / "base", "hf", MODEL))
    truth = merged_by_hand(weights_in(trainer), LORA)
    source = open_origin(tmp_path / "run", ONE)
    for name, stored in source.parameters.items():
        torch.testing.assert_close(stored.read(), truth[name].to(stored.dtype), rtol=0, atol=1e-6)
    unmerged, merged = unmerged_logits(trainer), load_model(source, ONE).logits(IDS)
    scale = unmerged.abs().max()
    assert (unmerged - plain_logits(truth, MODEL)).abs().max() / scale < 1e-13
    assert (merged - unmerged).abs().max() / scale < 1e-6, "the base is stored in float32"
    without = plain_logits(base_weights(MODEL), MODEL)
    assert (unmerged - without).abs().max() / scale > 0.1


def test_a_float64_base_takes_its_adapter_without_any_loss(tmp_path):
    exact = {name: weight.double() for name, weight in base_weights(MODEL).items()}
    trainer = save_adapter(tmp_path / "run", write_hf(tmp_path / "base", MODEL, exact))
    unmerged, merged = unmerged_logits(trainer), load_model(open_origin(tmp_path / "run", ONE), ONE).logits(IDS)
    assert (merged - unmerged).abs().max() / unmerged.abs().max() < 1e-13


def merged_here(layout: Layout, path: Path):
    """Each rank's blocks of the merged weights."""
    trainer = untrained(layout)
    load_origin(open_origin(path, trainer.mesh), trainer.config.model, trainer.stage, trainer.mesh)
    return owned_blocks(trainer, "values")


def test_merging_gives_every_layout_the_same_bits(ranks, tmp_path):
    save_adapter(tmp_path / "run", write_base(tmp_path / "base", "ours", MODEL))
    plain = Layout(layers=2, dtype="float32")
    one = assemble([merged_here(plain, tmp_path / "run")])
    found = assemble(ranks.run(merged_here, 2, replace(plain, tensor=2), tmp_path / "run"))
    assert found.keys() == one.keys()
    assert all((found[name] == weight).all() for name, weight in one.items())


def test_a_run_begins_with_an_adapter_and_stands_on_the_same_base(tmp_path):
    first = save_adapter(tmp_path / "run", write_base(tmp_path / "base", "hf", MODEL), steps=1)
    second = untrained(LAYOUT)
    assert begin(open_origin(tmp_path / "run", ONE), second) == first.base
    ours, theirs = weights_in(second), weights_in(first)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert second.optimizer.updates == 0
    other = untrained(replace(LAYOUT, lora=LORA.model_copy(update={"alpha": 9.0})))
    assert "has lora.alpha = 4.5 (here 9.0)" in error_of(begin, open_origin(tmp_path / "run", ONE), other)


def test_what_was_trained_beside_an_adapter_is_saved_and_not_lost_by_the_next_run(tmp_path):
    base = write_base(tmp_path / "base", "hf", MODEL)
    with_norms = LAYOUT.config(trainable=["*norm*"])
    trainer = adapted(LAYOUT, base, with_norms)
    train(trainer, range(1, 3))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    origin = open_origin(tmp_path / "run", ONE)
    assert "model.norm.weight" in origin.adapter.beside
    again = untrained(LAYOUT, config=with_norms)
    begin(origin, again)
    assert torch.equal(weights_in(again)["model.norm.weight"], weights_in(trainer)["model.norm.weight"])
    said = error_of(begin, origin, untrained(LAYOUT))
    assert "trained beside its adapter: train it here too" in said


def test_an_adapters_run_without_a_base_saves_everything_and_is_merged_when_asked(tmp_path):
    trainer = untrained(LAYOUT)
    train(trainer, range(1, 3))
    save(tmp_path / "run", trainer, 1, 12, base=None)
    again = untrained(LAYOUT)
    spoil(again)
    assert resume(open_checkpoint(tmp_path / "run", ONE), again, None)[1] is None
    assert_same(whole([owned(again)]), whole([owned(trainer)]))
    merged, unmerged = load_model(open_origin(tmp_path / "run", ONE), ONE).logits(IDS), unmerged_logits(trainer)
    assert (merged - unmerged).abs().max() / unmerged.abs().max() < 1e-13
    assert begin(open_origin(tmp_path / "run", ONE), again) is None


def test_what_is_merged_says_so_and_gets_the_adapter_no_second_time(tmp_path):
    save_adapter(tmp_path / "run", write_base(tmp_path / "base", "hf", MODEL))
    done = convert(tmp_path / "run", tmp_path / "merged", "ours", merge=True)
    assert done.merged == (
        f"merged: W + 4.5 / 3 B A in 10 matrices ({', '.join(LORA.targets)}) of {tmp_path / 'base'}; the result is a "
        f"model without adapter"
    )
    convert(tmp_path / "run", tmp_path / "hf", "hf")
    for path in ("merged", "hf"):
        source = open_source(tmp_path / path)
        assert source.adapter is None
        assert source.merged["adapter"] == str(tmp_path / "run" / "step_1")
        said = error_of(open_origin, tmp_path / "run", ONE, tmp_path / path)
        assert "it must be the very model that was trained on" in said
    convert(tmp_path / "run", tmp_path / "peft", "peft")
    without_checksum(tmp_path / "peft")
    said = error_of(open_source, tmp_path / "peft", base=tmp_path / "hf")
    where = f"{tmp_path / 'peft'} is merged in {tmp_path / 'hf'} already"
    assert said == f"{where}: it must be added once, to {tmp_path / 'base'}"


def without_checksum(directory: Path) -> None:
    """As PEFT itself would have written it."""
    tensors = load_file(directory / "adapter_model.safetensors")
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


def test_a_merged_export_is_computed_in_float32_and_rounded_once(tmp_path):
    half = {name: weight.bfloat16() for name, weight in base_weights(MODEL).items()}
    trainer = adapted(replace(LAYOUT, dtype="float32"), write_hf(tmp_path / "base", MODEL, half))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    truth = merged_by_hand(weights_in(trainer), LORA)
    for dtype, given in ((torch.bfloat16, None), (torch.float32, "float32")):
        convert(tmp_path / "run", tmp_path / f"hf {given}", "hf", dtype=given)
        for name, stored in open_source(tmp_path / f"hf {given}").parameters.items():
            assert stored.dtype == dtype
            lost, size = (stored.read().double() - truth[name]).abs(), truth[name].abs()
            if dtype == torch.bfloat16:
                assert (lost <= 2**-8 * size + 2**-20).all(), "each is the nearest number"
            else:
                assert lost.max() < 1e-6 < 2**-8 * size.max()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["ours", "hf"])
def test_a_scalar_model_begins_with_a_policys_weights_and_keeps_its_own_score(tmp_path, kind, tied):
    policy = ModelConfig.model_validate({**MODEL.model_dump(), "tie_word_embeddings": tied})
    base = write_base(tmp_path / "base", kind, policy)
    trainer = untrained(Layout(layers=2, head="scalar", dtype="float32"))
    score = weights_in(trainer)["score.weight"]
    assert score.any()
    assert begin(open_origin(base, ONE), trainer) is None
    found = weights_in(trainer)
    assert torch.equal(found.pop("score.weight"), score)
    assert found.keys() == weights_of(policy).keys() - {"lm_head.weight"}
    assert all(torch.equal(weight, base_weights(policy)[name].double()) for name, weight in found.items())


def test_a_policy_does_not_begin_with_a_reward_models_weights(tmp_path):
    trainer = untrained(Layout(layers=2, head="scalar"))
    save(tmp_path / "reward", trainer, 1, 12)
    said = error_of(begin, open_origin(tmp_path / "reward", ONE), untrained(Layout(layers=2)))
    assert "has no parameter lm_head.weight, which the model needs" in said


def test_a_reward_models_adapter_holds_its_score(tmp_path):
    layout = replace(LAYOUT, head="scalar")
    trainer = adapted(layout, write_base(tmp_path / "base", "hf", MODEL))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    assert "score.weight" in open_checkpoint(tmp_path / "run", ONE).index.main.parameters
    again = untrained(layout)
    spoil(again)
    resume(open_checkpoint(tmp_path / "run", ONE), again, None)
    assert_same(whole([owned(again)]), whole([owned(trainer)]))
    plain = untrained(Layout(layers=2, head="scalar"))
    load_origin(open_origin(tmp_path / "run", ONE), plain.config.model, plain.stage, ONE)
    truth, found = merged_by_hand(weights_in(trainer), LORA), weights_in(plain)
    assert found.keys() == truth.keys()
    assert all((found[name] - weight).abs().max() < 1e-6 for name, weight in truth.items())


def test_what_is_asked_of_no_adapter_is_a_usage_error(tmp_path):
    base = write_hf(tmp_path / "hf", model_of(), weights_of(model_of()))
    for given in ({"to": "peft"}, {"to": "ours", "merge": True}):
        with pytest.raises(UsageError, match=f"{base} is no adapter, but a Hugging Face directory"):
            convert(base, tmp_path / "out", **given)
    save_adapter(tmp_path / "run", write_base(tmp_path / "base", "ours", MODEL))
    with pytest.raises(UsageError, match="PEFT opens Hugging Face directories alone: convert that with --to hf"):
        convert(tmp_path / "run", tmp_path / "out", "peft")
    with pytest.raises(DataError, match="is no model"):
        open_source(tmp_path)


def test_what_a_checkpoint_says_beside_its_weights_stays_with_a_merged_model_of_ours(tmp_path):
    trainer = adapted(LAYOUT, write_base(tmp_path / "base", "hf", MODEL))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base, extra={"scale": {"mean": 2.5}})
    assert notes_of(open_origin(tmp_path / "run", ONE)) == {"scale": {"mean": 2.5}}
    convert(tmp_path / "run", tmp_path / "merged", "ours", merge=True)
    assert notes_of(open_origin(tmp_path / "merged", ONE))["scale"] == {"mean": 2.5}


def test_the_average_of_an_adapter_is_merged_in_its_place(tmp_path):
    base = write_base(tmp_path / "base", "hf", MODEL)
    trainer = adapted(LAYOUT, base, LAYOUT.config(ema=0.5))
    train(trainer, range(1, 3))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    averages = whole([owned(trainer)])["ema"]
    assert len(averages) == 2 * 5 * 2
    weights = weights_in(trainer) | {name: torch.from_numpy(average) for name, average in averages.items()}
    truth = merged_by_hand(weights, LORA)
    convert(tmp_path / "run", tmp_path / "hf", "hf", average=True)
    found = open_source(tmp_path / "hf").parameters
    assert all((found[name].read() - weight).abs().max() < 1e-6 for name, weight in truth.items())
    plain = merged_by_hand(weights_in(trainer), LORA)
    assert any((found[name].read() - weight).abs().max() > 1e-3 for name, weight in plain.items())
