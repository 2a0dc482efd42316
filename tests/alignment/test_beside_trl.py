"""Three steps beside trl 1.16's SFTTrainer, DPOTrainer (sigmoid and ipo), RewardTrainer, and peft's adapters: the same
weights, rows and AdamW in float32; raw gradients, losses, weights.

trl's answers stand in trl_answers.json, in two numbers a tensor. Nightly (extra trl) they are made again, and every
element is compared.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.layouts import Layout, Tensors, assemble, build_trainer, distance, owned_blocks
from support.pairs import END, Pair, pair
from support.rows import store_of_pairs, write_store

from megatron_lite.alignment.batches import Collator, Sample
from megatron_lite.alignment.columns import MARGIN, REFERENCE
from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.packing import best_fit
from megatron_lite.alignment.reference import reference_of
from megatron_lite.alignment.reward import BradleyTerry
from megatron_lite.alignment.store import Store
from megatron_lite.config import Config, LoraConfig, config_from_tree
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy
from megatron_lite.model.sequences import Sequences

HERE = Path(__file__).parent
STORED = HERE / "trl_answers.json"
STEPS, EACH, RATE, ROW = 3, 4, 1e-3, 48  # samples of a step; tokens of a row
BETA, CENTRING = 1.0, 0.05
LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj"))
BASE = Layout(layers=2, dtype="float32")
KINDS = {
    "sft": replace(BASE, objective=CrossEntropy()),
    "lora": replace(BASE, objective=CrossEntropy(), lora=LORA),
    "dpo": replace(BASE, objective=Dpo(BETA), pairs=True),
    "ipo": replace(BASE, objective=Dpo(BETA, "ipo", length_normalized=True), pairs=True),
    "reward": replace(BASE, objective=BradleyTerry(centring=CENTRING), pairs=True, head="scalar"),
}
PAIRS = [pair(200 + number) for number in range(STEPS * EACH)]


@dataclass
class Trajectory:
    """Log-probabilities of the longest row's tokens before the first step (of a vocabulary); losses of the steps, raw
    gradients of the first, weights before it and after the last.
    """

    outputs: list[float]
    losses: list[float]
    gradients: Tensors
    begun: Tensors
    weights: Tensors


def config_of(layout: Layout) -> Config:
    tree = layout.config(sequence_length=ROW, z_loss=0.0).model_dump(mode="json")
    optim = {"lr": RATE, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "grad_clip": None}
    return config_from_tree(tree | {"optim": optim})


def batches(kind: str, store: Store, reference: np.ndarray | None) -> list[list[Sequences]]:
    """Of each step two microbatches of two samples; samples share rows where they fit."""
    collate = Collator(61, ROW, pairs=KINDS[kind].pairs)

    def sample(number: int) -> Sample:
        columns = {} if reference is None else {REFERENCE.name: reference[number]}
        if MARGIN.name in store.columns:
            columns[MARGIN.name] = np.full(2, store.columns[MARGIN.name][number])
        return Sample(store.sample(number), number, columns=columns)

    def microbatch(first: int) -> Sequences:
        rows = best_fit(store.lengths[first : first + 2], ROW)
        return collate([[sample(first + number) for number in rows.row(row)] for row in range(len(rows))])

    return [[microbatch(first) for first in (step, step + 2)] for step in range(0, STEPS * EACH, EACH)]


def ours(kind: str, folder: Path) -> Trajectory:
    layout, config = KINDS[kind], config_of(KINDS[kind])
    trainer = build_trainer(layout, config=config)
    store = store_of_pairs(folder / kind, PAIRS)
    if not layout.pairs:
        store = write_store(folder / kind, [store.sample(number)[:1] for number in range(len(PAIRS))])
    reference = reference_of(store, trainer.model, "as begun", folder) if isinstance(layout.objective, Dpo) else None
    stage = trainer.stage
    begun = assemble([owned_blocks(trainer, "compute", stage.shards)])
    outputs = [] if kind == "reward" else outputs_of(trainer.model)
    losses, gradients = [], {}
    for step, microbatches in enumerate(batches(kind, store, reference)):
        result = trainer.gradients(microbatches)
        losses.append(result.loss.item())
        if step == 0:
            gradients = assemble([owned_blocks(trainer, "gradient")])
        trainer.update(result.grad_norm, RATE)
    return Trajectory(outputs, losses, gradients, begun, assemble([owned_blocks(trainer, "master")]))


def outputs_of(model: Model) -> list[float]:
    ids = max((one.chosen.tokens for one in PAIRS), key=len).unsqueeze(0)
    (found,) = model.outputs([Sequences(ids[:, :-1], ids[:, 1:], 61)], CrossEntropy())
    return found.log_probability[0].tolist()


def in_two_numbers(tensor: np.ndarray) -> list[float]:
    """Norm, and the sum weighted by each element's place: another order, or one element, changes one of them."""
    flat = tensor.astype(np.float64).ravel()
    return [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(len(flat))))]


def summary(found: Trajectory) -> dict[str, Any]:
    return {
        "outputs": found.outputs,
        "losses": found.losses,
        "gradients": {name: in_two_numbers(tensor) for name, tensor in sorted(found.gradients.items())},
        "weights": {name: in_two_numbers(tensor) for name, tensor in sorted(found.weights.items())},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_losses_and_weights_are_those_that_trl_gave(kind, tmp_path):
    theirs, mine = json.loads(STORED.read_text())[kind], summary(ours(kind, tmp_path))
    assert mine["outputs"] == pytest.approx(theirs["outputs"], abs=5e-6)
    assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-6)
    for what, bound in (("gradients", 1e-5), ("weights", 1e-5)):
        assert mine[what].keys() == theirs[what].keys()
        for name, numbers in theirs[what].items():
            assert mine[what][name] == pytest.approx(numbers, rel=bound, abs=bound * numbers[0]), f"{what} {name}"


def row_of(one: Pair) -> dict[str, Any]:
    length = int((~one.chosen.trained).sum())
    return {
        "prompt": one.chosen.tokens[:length].tolist(), "chosen": one.chosen.tokens[length:].tolist(),
        "rejected": one.rejected.tokens[length:].tolist(), "margin": one.margin,
    }  # fmt: skip


def shape_of(config: Config) -> dict[str, Any]:
    """By LlamaConfig's names."""
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    fields += ("vocab_size", "rms_norm_eps", "rope_theta", "head_dim", "tie_word_embeddings")
    return {name: getattr(config.model, name) for name in fields}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, tuple[Trajectory, Trajectory]]:
    """Ours and theirs of each kind."""
    folder = tmp_path_factory.mktemp("trl")
    given = {
        "model": shape_of(config_of(BASE)), "end": END, "rows": [row_of(one) for one in PAIRS], "rate": RATE,
        "steps": STEPS, "beta": BETA, "centring": CENTRING, "kinds": list(KINDS), "lora": LORA.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "given.json").write_text(json.dumps(given))
    mine = {kind: ours(kind, folder) for kind in KINDS}
    for kind, one in mine.items():
        save_file(
            {name: tensor.astype(np.float32) for name, tensor in one.begun.items()}, folder / f"{kind}.safetensors"
        )
    script = [sys.executable, str(HERE / "trl_answers.py"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: (one, answers(folder / f"{kind}.answers.safetensors")) for kind, one in mine.items()}


def answers(path: Path) -> Trajectory:
    found = load_file(path)
    parts = {
        what: {name.removeprefix(f"{what} "): one for name, one in found.items() if name.startswith(f"{what} ")}
        for what in ("gradient", "weight")
    }
    outputs, losses = found["outputs"].tolist(), found["losses"].tolist()
    return Trajectory(outputs, losses, parts["gradient"], {}, parts["weight"])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_and_weight_is_that_of_trl(both, kind, capsys):
    mine, theirs = both[kind]
    assert mine.gradients.keys() == theirs.gradients.keys()
    gradients = {name: distance(mine.gradients[name], theirs.gradients[name]) for name in theirs.gradients}
    weights = {name: float(np.abs(mine.weights[name] - theirs.weights[name]).max()) for name in theirs.weights}
    losses = np.abs(np.array(mine.losses) - theirs.losses)
    assert mine.outputs == pytest.approx(theirs.outputs, abs=5e-6)
    with capsys.disabled():
        print(
            f"\n{kind}: gradients {max(gradients.values()):.1e} of their largest, losses {losses.max():.1e}, "
            f"weights {max(weights.values()):.1e}"
        )
    assert max(gradients.values()) < 1e-5, gradients
    assert losses.max() < 1e-6
    assert max(weights.values()) < 1e-5, weights


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_trl_still_gives_the_answers_that_are_stored(both, kind):
    theirs, stored = both[kind][1], json.loads(STORED.read_text())[kind]
    made = summary(theirs)
    assert made["outputs"] == pytest.approx(stored["outputs"], abs=5e-6)
    assert made["losses"] == pytest.approx(stored["losses"], abs=1e-6)
    for what in ("gradients", "weights"):
        assert made[what].keys() == stored[what].keys()
        for name, numbers in stored[what].items():
            assert made[what][name] == pytest.approx(numbers, rel=1e-5, abs=1e-5 * numbers[0]), f"{what} {name}"
