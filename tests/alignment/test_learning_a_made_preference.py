"""The whole chain on a small model from nothing: fine-tuning, a reward model, DPO, on made rows whose rule can judge
(tools/make_preferences.py). Questions that were kept from training decide.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.runs import metrics_of

from megatron_lite.data.text_sample import Sampling
from megatron_lite.data.tokenizer_training import train_tokenizer

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
TREE = {
    "model": {"preset": "tiny", "vocab_size": 512, "tie_word_embeddings": True},
    "parallel": {"tensor": 2},
    "train": {"global_batch_size": 8, "micro_batch_size": 4, "sequence_length": 256, "dtype": "float32"},
    "checkpoint": {"every": None},
}


def python(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def trained(folder: Path, algorithm: str, rows: str, init: str | None, steps: int, lr: float, **section) -> dict:
    """The last line of its metrics."""
    tree = json.loads(json.dumps(TREE))
    tree["data"] = {
        "train": [{"path": str(folder / f"{rows}_train.jsonl")}],
        "valid": [{"path": str(folder / f"{rows}_valid.jsonl")}],
        "tokenizer": str(folder / "made.model"), "workers": 1,
    }  # fmt: skip
    tree["optim"] = {"lr": lr, "warmup_steps": 10, "weight_decay": 0.0}
    tree["train"] |= {"run_dir": str(folder / algorithm), "steps": steps, "valid_every": None}
    tree["checkpoint"]["init"] = None if init is None else str(folder / init)
    path = folder / f"{algorithm}.yaml"
    path.write_text(yaml.safe_dump({**tree, algorithm: section}), encoding="utf-8")
    python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", f"megatron_lite.{algorithm}", path
    )
    return metrics_of(folder / algorithm)[-1]


def answered(folder: Path, run: str) -> Path:
    output = folder / f"answers_{run}.jsonl"
    options = ["-n", 4, "--temperature", 1, "--max-new-tokens", 80, "--seed", 1]
    python("-m", "megatron_lite.generate", folder / run, "--prompts", folder / "prompts.jsonl", "--output", output,
           *options)  # fmt: skip
    return output


def test_a_reward_model_learns_the_rule_and_dpo_follows_it(tmp_path):
    python("tools/make_preferences.py", "--output-dir", tmp_path)
    said = [json.loads(line)["messages"] for line in (tmp_path / "dialogues_train.jsonl").read_text().splitlines()]
    texts = [message["content"] for messages in said for message in messages]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([str(tmp_path / "texts.jsonl")], str(tmp_path / "made"), 512, Sampling())

    sft = trained(tmp_path, "sft", "dialogues", None, 300, 3e-3)
    reward = trained(tmp_path, "reward", "pairs", "sft", 60, 3e-4)
    before = trained(tmp_path, "dpo", "pairs", "sft", 1, 1e-12)
    (tmp_path / "dpo").rename(tmp_path / "not_moved")
    dpo = trained(tmp_path, "dpo", "pairs", "sft", 80, 2e-4, nll_weight=1.0)
    judged = python(
        "tools/make_preferences.py", "--judge", answered(tmp_path, "dpo"), answered(tmp_path, "sft")
    )  # fmt: skip
    print(
        f"held out: SFT loss {sft['valid_loss']:.3f}; reward accuracy {reward['valid_accuracy']:.3f}; DPO margin "
        f"{before['valid_margin']:.3f} -> {dpo['valid_margin']:.3f}, accuracy {dpo['valid_accuracy']:.3f}, chosen "
        f"log-probability {before['valid_chosen_logprob']:.2f} -> {dpo['valid_chosen_logprob']:.2f}, wins {judged}"
    )
    assert reward["valid_accuracy"] > 0.9
    assert dpo["valid_margin"] > before["valid_margin"] + 0.5
    assert float(judged) > 0.7
