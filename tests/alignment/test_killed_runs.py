"""A run after pretraining that was killed goes on to the bit: random numbers of adapters and noise, a reward model's
scale, cached references, the place in an epoch.
"""

import random

import pytest
from support.aligning import run_align, tree_of, write_rows
from support.runs import kill_launcher, numbers_of, start, tensors_of, wait_for_step

pytestmark = pytest.mark.nightly
CUBE = {"parallel__tensor": 2, "parallel__pipeline": 2, "train__dtype": "bfloat16", "train__steps": 16}
RANDOM = {"lora": {"rank": 4, "dropout": 0.2}, "train__neftune_alpha": 5.0}


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [("sft", {}), ("sft", RANDOM), ("reward", {}), ("dpo", {}), ("dpo", {"lora": {"rank": 4}})],
    ids=["sft", "sft, adapter with noise", "reward", "dpo", "dpo, adapter"],
)
def test_goes_on_to_the_bit(ranks, tmp_path, algorithm, changes):
    data_dir = write_rows(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changed = {**CUBE, **changes, "optim__decay_steps": 16}
    ranks.run(run_align, 8, algorithm, tree_of(algorithm, whole, data_dir, **changed), 8)

    step = random.randrange(4, 12)
    process = start(algorithm, tree_of(algorithm, killed, data_dir, **changed), 8)
    wait_for_step(killed, step, process)
    kill_launcher(process)
    assert not (killed / "checkpoints" / "step_16").exists(), f"killed too late, at step {step}"
    ranks.run(run_align, 8, algorithm, tree_of(algorithm, killed, data_dir, **changed), 8)

    assert numbers_of(killed) == numbers_of(whole), f"killed at step {step}"
    assert tensors_of(killed / "checkpoints" / "step_16") == tensors_of(whole / "checkpoints" / "step_16")
