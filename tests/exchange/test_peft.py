"""PEFT's directories, in and out: what PEFT saved is that function here, what is written here is that adapter there.

PEFT's answers stand in peft_answers.json. Nightly (extra verify) they are made again, and PEFT opens what is written.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from math import sqrt
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from exchange import peft_answers
from exchange.models import write_hf
from exchange.peft_answers import IDS, KINDS, numbers_of, value_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import reference
from support.adapted import LAYOUT, base_weights, merged_by_hand, unmerged_logits, weights_in
from support.checkpoints import train, untrained
from support.generation import ONE
from support.layouts import Layout, assemble, owned_blocks

from megatron_lite.checkpoint import open_checkpoint, save
from megatron_lite.errors import DataError, UsageError
from megatron_lite.exchange import convert, open_source
from megatron_lite.exchange.origin import begin, load_origin, open_origin, resume
from megatron_lite.exchange.source import Source
from megatron_lite.inference.opening import load_model
from megatron_lite.model.sequences import Sequences
from megatron_lite.training.step import Trainer

STORED = Path(__file__).with_name("peft_answers.json")
ANSWERS = json.loads(STORED.read_text())
MODEL = LAYOUT.config().model
POLICIES = [kind for kind in KINDS if kind != "scalar"]
TOKENS = torch.tensor(IDS)


def write_base(directory: Path) -> Path:
    exact = {name: weight.double() for name, weight in base_weights(MODEL).items()}
    return write_hf(directory, MODEL, exact, torch_dtype="float64")


def write_as_peft_did(directory: Path, kind: str, base: Path, **changes) -> Path:
    """Its configuration, and its tensors under its names."""
    directory.mkdir()
    config = {**ANSWERS[kind]["config"], "base_model_name_or_path": str(base), **changes}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: value_of(name, shape) for name, shape in ANSWERS[kind]["shapes"].items()}
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    return directory


def trainer_of(source: Source) -> Trainer:
    """A run that begins with a source's adapter."""
    layout = replace(LAYOUT, lora=source.adapter.lora, head=source.model.head)
    trainer = untrained(layout, config=layout.config(z_loss=0.0))
    trainer.base = begin(source, trainer)
    return trainer


@pytest.mark.parametrize("kind", POLICIES)
def test_what_peft_saved_has_its_logits_loss_and_gradients_here(tmp_path, kind):
    """In float64, but that transformers makes norms and angles in float32; gradients in the units with adapters, logits
    there and merged.
    """
    source = open_source(write_as_peft_did(tmp_path / "peft", kind, write_base(tmp_path / "base")))
    answers, lora = ANSWERS[kind], source.adapter.lora
    scale = answers["config"]["lora_alpha"] / (sqrt(3) if kind == "rank-stabilized" else 3)
    assert (lora.rank, lora.dropout, lora.scale) == (3, 0.25, pytest.approx(scale, rel=1e-15))
    trainer = trainer_of(source)
    for logits in (unmerged_logits(trainer, TOKENS), load_model(source, ONE, dtype="float64").logits(TOKENS)):
        assert numbers_of(logits) == pytest.approx(answers["logits"], rel=1e-6)
        assert logits.flatten()[-5:].tolist() == pytest.approx(answers["last"], abs=2e-6)
    labels = torch.tensor([[*IDS[1:], -1]])
    result = trainer.gradients([Sequences(TOKENS[None], labels, MODEL.vocab_size)])
    assert result.loss.item() == pytest.approx(answers["loss"], rel=1e-6)
    gradients = assemble([owned_blocks(trainer, "gradient")])
    assert {f"base_model.model.{name}" for name in gradients} == answers["gradients"].keys()
    for name, gradient in gradients.items():
        stored = answers["gradients"][f"base_model.model.{name}"]
        assert numbers_of(torch.from_numpy(gradient)) == pytest.approx(stored, rel=2e-6, abs=2e-6 * stored[0]), name


def test_an_adapter_with_a_score_is_a_reward_model_with_pefts_score(tmp_path):
    source = open_source(write_as_peft_did(tmp_path / "peft", "scalar", write_base(tmp_path / "base")))
    assert (source.model.head, source.model.tie_word_embeddings) == ("scalar", False)
    trainer = trainer_of(source)
    plain = untrained(Layout(layers=2, head="scalar"))
    load_origin(source, plain.config.model, plain.stage, ONE)
    truth, found = merged_by_hand(weights_in(trainer), source.adapter.lora), weights_in(plain)
    assert found.keys() == truth.keys()
    assert max((found[name] - weight).abs().max() for name, weight in truth.items()) < 1e-15
    score = reference.hidden(found, TOKENS[None], source.model)[0, -1] @ found["score.weight"][0]
    assert score.item() == pytest.approx(ANSWERS["scalar"]["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["plain", "scalar"])
def test_what_goes_out_has_pefts_names_and_keys_and_comes_back_to_the_bit(tmp_path, kind):
    source = open_source(write_as_peft_did(tmp_path / "peft", kind, write_base(tmp_path / "base")))
    trainer = trainer_of(source)
    train(trainer, range(1, 3)) if kind == "plain" else None
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    convert(tmp_path / "run", tmp_path / "out", "peft")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    theirs = {**ANSWERS[kind]["config"], "base_model_name_or_path": str(tmp_path / "base")}
    wrong = {key for key, value in written.items() if key not in ("target_modules", "modules_to_save", "peft_type")
             and theirs[key] != value}  # fmt: skip
    assert not wrong
    assert sorted(written["target_modules"]) == theirs["target_modules"]
    assert written["modules_to_save"] == (None if kind == "plain" else ["score"])
    tensors, weights = load_file(tmp_path / "out" / "adapter_model.safetensors"), weights_in(trainer)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == ANSWERS[kind]["shapes"]
    assert all(torch.equal(tensor, weights[name.removeprefix("base_model.model.")]) for name, tensor in tensors.items())
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "base_xxh3": trainer.base.xxh3}

    convert(tmp_path / "out", tmp_path / "back", "ours")
    back = open_checkpoint(tmp_path / "back", ONE)
    assert back.index.main.base == trainer.base
    assert back.index.config["lora"] == {**source.adapter.lora.model_dump(mode="json")}
    assert weights_of_origin(tmp_path / "back") == weights_of_origin(tmp_path / "run")


def weights_of_origin(path: Path) -> dict[str, list]:
    return {name: stored.read().tolist() for name, stored in open_source(path).parameters.items()}


def test_a_base_that_moved_is_given_and_another_one_is_refused_where_the_directory_says_its_checksum(tmp_path):
    base = write_base(tmp_path / "base")
    save(tmp_path / "run", (trainer := trainer_of(open_source(write_as_peft_did(tmp_path / "peft", "plain", base)))), 1,
         12, base=trainer.base)  # fmt: skip
    convert(tmp_path / "run", tmp_path / "out", "peft")
    shutil.move(base, tmp_path / "moved")
    for path in ("peft", "out"):
        with pytest.raises(
            DataError, match=f"names the base {base}, which is no path here: give its place with --base"
        ):
            open_source(tmp_path / path)
        assert open_source(tmp_path / path, base=tmp_path / "moved").adapter.lora == trainer.config.lora
    exact = {name: weight.double() * 1.01 for name, weight in base_weights(MODEL).items()}
    other = write_hf(tmp_path / "other", MODEL, exact)
    with pytest.raises(DataError, match=f"stands on {other} with the checksum .*must be the very model"):
        open_source(tmp_path / "out", base=other)


REFUSED = {
    "peft_type": ("LOHA", "peft_type = LOHA: must be LORA"),
    "use_dora": (True, "use_dora = true: must be false"),
    "bias": ("lora_only", "bias = lora_only: must be none"),
    "fan_in_fan_out": (True, "fan_in_fan_out = true: must be false"),
    "lora_bias": (True, "lora_bias = true: must be false"),
    "rank_pattern": ({"q_proj": 5}, "rank_pattern = .*: LoRA here has no such thing"),
    "alpha_pattern": ({"q_proj": 5}, "alpha_pattern = .*: LoRA here has no such thing"),
    "layer_replication": ([[0, 2], [1, 2]], "layer_replication = .*: LoRA here has no such thing"),
    "trainable_token_indices": ([1], "trainable_token_indices = .*: LoRA here has no such thing"),
    "modules_to_save": (["embed_tokens"], "modules_to_save = .*embed_tokens.*: only a scalar head"),
    "init_lora_weights": ("pissa", "init_lora_weights = pissa: must be true"),
    "a_key_of_tomorrow": ("deep", "a_key_of_tomorrow = deep: LoRA here has no such thing"),
    "r": (4, r"has \S+lora_A.weight with shape \[3, \d+\], rank 4 on this model makes it \[4, \d+\]"),
    "lora_alpha": (-1, "alpha = -1: must be greater than 0"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_another_function_is_refused_by_name(tmp_path, key):
    value, complaint = REFUSED[key]
    path = write_as_peft_did(tmp_path / "peft", "plain", write_base(tmp_path / "base"), **{key: value})
    with pytest.raises(DataError, match=complaint) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda t: t.pop(layer_name(1, "q_proj", "A")), "has no .*1.self_attn.q_proj.lora_A.weight: adapters here"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 32)}), "lm_head.lora_A.weight"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(32)}), "norm.weight beside the adapter"),
        (lambda t: t.update({"model.layers.0.x": torch.ones(3)}), "names of tensors there begin with base_model.model"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_adapter_of_this_model_are_refused_by_name(tmp_path, change, complaint):
    path = write_as_peft_did(tmp_path / "peft", "plain", write_base(tmp_path / "base"))
    tensors = load_file(path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(DataError, match=complaint):
        open_source(path)


def layer_name(layer: int, target: str, letter: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{letter}.weight"


def test_a_pickled_adapter_a_base_that_is_an_adapter_and_a_base_without_a_name_are_refused(tmp_path):
    path = write_as_peft_did(tmp_path / "peft", "plain", write_base(tmp_path / "base"))
    again = write_as_peft_did(tmp_path / "again", "plain", path)
    with pytest.raises(DataError, match=f"{again} is an adapter on {path}, which is one itself: merge that first"):
        open_source(again)
    nameless = write_as_peft_did(tmp_path / "nameless", "plain", None, base_model_name_or_path=None)
    with pytest.raises(DataError, match="names no base: give its place with --base"):
        open_source(nameless)
    assert open_source(nameless, base=tmp_path / "base").adapter is not None
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(DataError, match=r"has no adapter_model\.safetensors; adapter_model\.bin is a pickle"):
        open_source(path)


def test_what_was_trained_beside_has_no_place_in_pefts_directory(tmp_path):
    base = write_base(tmp_path / "base")
    source = open_source(write_as_peft_did(tmp_path / "peft", "plain", base))
    layout = replace(LAYOUT, lora=source.adapter.lora)
    trainer = untrained(layout, config=layout.config(trainable=["*norm*"]))
    save(tmp_path / "run", trainer, 1, 12, base=begin(source, trainer))
    with pytest.raises(DataError, match=r"norm\.weight trained beside the adapter, .*: merge it, with --to hf"):
        convert(tmp_path / "run", tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "run", tmp_path / "out", "hf")


def call(monkeypatch, capsys, *arguments) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()
    return capsys.readouterr().out.splitlines()


def test_the_command_says_what_it_did_with_an_adapter(tmp_path, monkeypatch, capsys):
    base = write_base(tmp_path / "base")
    path = write_as_peft_did(tmp_path / "peft", "plain", base)
    said = call(monkeypatch, capsys, path, tmp_path / "ours", "--to", "ours")
    count = sum(torch.Size(shape).numel() for shape in ANSWERS["plain"]["shapes"].values())
    assert said == [
        f"PEFT directory {path} -> checkpoint {tmp_path / 'ours'}: {count:,} parameters in 1 file",
        "left out: nothing",
    ]
    base.rename(tmp_path / "moved")
    said = call(
        monkeypatch, capsys, tmp_path / "ours", tmp_path / "hf", "--to", "hf", "--base", tmp_path / "moved", "--dtype",
        "float32",
    )  # fmt: skip
    count = sum(weight.numel() for weight in base_weights(MODEL).values())
    assert said == [
        f"checkpoint {tmp_path / 'ours'} -> Hugging Face directory {tmp_path / 'hf'}: {count:,} parameters in 1 file",
        "left out: nothing",
        f"merged: W + 5 / 3 B A in 10 matrices (q_proj, v_proj, o_proj, up_proj, down_proj) of {tmp_path / 'moved'}; "
        f"the result is a model without adapter",
        "21 tensors rounded from float64 to float32",
    ]
    with pytest.raises(UsageError, match="is a checkpoint already"):
        convert(tmp_path / "ours", tmp_path / "again", "ours", base=tmp_path / "moved")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with PEFT's answers, made now."""
    folder = tmp_path_factory.mktemp("peft")
    write_base(folder / "base")
    done = subprocess.run([sys.executable, peft_answers.__file__, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_peft_still_gives_the_answers_that_are_stored(made, kind):
    now, stored = json.loads((made / "answers.json").read_text())[kind], ANSWERS[kind]
    for what in ("config", "shapes"):
        assert now[what] == stored[what]
    for what in ("logits", "last", "loss"):
        assert now[what] == pytest.approx(stored[what], rel=1e-11)
    assert now["gradients"].keys() == stored["gradients"].keys()
    for name, numbers in stored["gradients"].items():
        assert now["gradients"][name] == pytest.approx(numbers, rel=1e-10, abs=1e-11 * numbers[0])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", POLICIES)
def test_the_directory_that_peft_wrote_has_its_logits_here(made, kind):
    logits = load_model(open_source(made / kind), ONE, dtype="float64").logits(TOKENS)
    assert numbers_of(logits) == pytest.approx(ANSWERS[kind]["logits"], rel=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_what_is_written_here_has_our_logits_in_peft_and_merged_in_transformers(made, tmp_path, dtype, bound, capsys):
    import peft
    import transformers

    trainer = trainer_of(open_source(made / "plain"))
    train(trainer, range(1, 4))
    save(tmp_path / "run", trainer, 1, 12, base=trainer.base)
    ours = unmerged_logits(trainer, TOKENS)
    convert(tmp_path / "run", tmp_path / "peft", "peft")
    convert(tmp_path / "run", tmp_path / "hf", "hf")
    open_model = transformers.AutoModelForCausalLM.from_pretrained
    theirs = {
        "PEFT": peft.PeftModel.from_pretrained(open_model(made / "base", dtype=dtype), tmp_path / "peft").to(dtype),
        "AutoPeftModel": peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft", dtype=dtype).to(dtype),
        "transformers, merged": open_model(tmp_path / "hf", dtype=dtype),
    }
    for name, model in theirs.items():
        with torch.no_grad():
            logits = model.eval()(TOKENS[None], use_cache=False).logits[0].double()
        far = ((logits - ours).abs().max() / ours.abs().max()).item()
        with capsys.disabled():
            print(f"\n{name}, {dtype}: logits differ by {far:.1e} of the largest")
        assert far < bound
    without = load_model(open_origin(made / "base", ONE), ONE).logits(TOKENS)
    assert (without - ours).abs().max() / ours.abs().max() > 0.05


@pytest.mark.nightly
def test_verify_compares_an_adapter_with_peft_and_what_is_merged_with_transformers(made, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("as many bytes as make a few batches of this text " * 30)
    convert(made / "plain", tmp_path / "ours", "ours")
    for source, to in ((made / "plain", "ours"), (made / "plain", "hf"), (tmp_path / "ours", "peft"),
                       (tmp_path / "ours", "hf")):  # fmt: skip
        said = call(monkeypatch, capsys, source, tmp_path / f"{source.name} {to}", "--to", to, "--verify", text)
        assert said[-1].startswith("verified: 1470 tokens, logits differ by ")
        with capsys.disabled():
            print(f"\n{source.name} --to {to}: {said[-1]}")


def test_a_run_goes_on_from_an_adapter_that_came_in(tmp_path):
    path = write_as_peft_did(tmp_path / "peft", "plain", write_base(tmp_path / "base"))
    trainer = trainer_of(open_source(path))
    train(trainer, range(1, 3))
    save(tmp_path / "run", trainer, 2, 24, base=trainer.base)
    again = untrained(LAYOUT, config=trainer.config)
    state, base = resume(open_checkpoint(tmp_path / "run", ONE), again, str(path))
    assert (state.step, base.path) == (2, str(tmp_path / "base"))
    assert train(again, range(3, 5)) == train(trainer, range(3, 5))
