"""The configurations of what follows the 65B pretraining fit GPUs of 80 GB on 64 to 512 of them, their launch script
refuses another world, and the quickstart's own fit its eight ranks.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from megatron_lite.config import AlignedConfig, config_from_tree, load_config, resolve
from megatron_lite.config.load import load_tree
from megatron_lite.model.model import schedule_of
from megatron_lite.planning.memory_forms import peak_memory
from megatron_lite.planning.regather import microbatches_until_full
from tools.step_on_paper import enough, trained_on_paper, worlds_table

ROOT = Path(__file__).parents[2]
EXAMPLES, WORLDS = ROOT / "examples", (64, 128, 256, 512)
LARGE = {
    "sft/65b.yaml": ("sft", 128),
    "sft/65b_lora.yaml": ("sft", 128),
    "rlhf/reward_65b.yaml": ("reward", 64),
    "rlhf/dpo_65b.yaml": ("dpo", 64),
    "rlhf/dpo_lora_65b.yaml": ("dpo", 64),
}
NANO = {"sft/nano.yaml": "sft", "rlhf/reward_nano.yaml": "reward", "rlhf/dpo_nano.yaml": "dpo"}
LIMIT = 72 * 2**30  # of 80: the rest is the context's, NCCL's buffers' and fragmentation's


def config_of(name: str) -> AlignedConfig:
    config = load_config(EXAMPLES / name)
    assert isinstance(config, AlignedConfig)
    return config


@pytest.mark.parametrize("world", [64, *(pytest.param(world, marks=pytest.mark.nightly) for world in WORLDS[1:])])
@pytest.mark.parametrize("name", LARGE)
def test_every_stage_fits_an_80_gb_gpu(name, world):
    config, (algorithm, rows) = config_of(name), LARGE[name]
    resolved = resolve(config, world)
    assert (config.algorithm, config.train.global_batch_size) == (algorithm, rows)
    assert (config.model.num_hidden_layers, config.model.hidden_size, config.model.vocab_size) == (80, 8192, 128000)
    schedule = schedule_of(config, resolved, microbatches_until_full(config, resolved))
    for stage in range(resolved.pipeline):
        assert peak_memory(config, resolved, schedule, stage).total < LIMIT


@pytest.mark.parametrize(
    ("name", "world", "rank"),
    [
        ("rlhf/reward_65b.yaml", 64, 63),
        pytest.param("rlhf/dpo_65b.yaml", 512, 511, marks=pytest.mark.nightly),
        pytest.param("sft/65b.yaml", 64, 0, marks=pytest.mark.nightly),
        pytest.param("sft/65b_lora.yaml", 64, 0, marks=pytest.mark.nightly),
        pytest.param("rlhf/dpo_lora_65b.yaml", 512, 0, marks=pytest.mark.nightly),
    ],
)
def test_the_step_on_paper_takes_what_its_forms_say(name, world, rank):
    config = config_of(name)
    resolved, count = resolve(config, world), enough(config, world)
    step = trained_on_paper(config, world, rank, count)
    expected = peak_memory(config, resolved, schedule_of(config, resolved, count), step.stage)
    assert step.peak < LIMIT
    assert step.peak == pytest.approx(expected.total, rel=0.01)


@pytest.mark.nightly
@pytest.mark.parametrize("name", LARGE)
def test_the_tables_of_the_documentation_are_todays(name):
    text = (ROOT / "docs" / "post_training.md").read_text(encoding="utf-8")
    found = re.search(rf"`examples/{re.escape(name)}`[^|]*(\|.*?)\n\n", text, re.DOTALL)
    assert found.group(1).splitlines() == worlds_table(config_of(name), WORLDS)


@pytest.mark.parametrize("name", NANO)
def test_the_quickstarts_configurations_load_and_fit_eight_ranks(name):
    tree = load_tree(EXAMPLES / name, [])
    # Of the checkpoint that it begins with, which a clean clone has not.
    config = config_from_tree(tree | {"model": load_config(EXAMPLES / "quickstart.yaml").model.model_dump(mode="json")})
    assert isinstance(config, AlignedConfig)
    resolved = resolve(config, 8)
    assert (config.algorithm, resolved.tensor, resolved.pipeline, resolved.data) == (NANO[name], 2, 2, 2)


def launch(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """With a torchrun that shows what it was given."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    variables = {**os.environ, "TORCHRUN": str(torchrun), "MASTER": "10.0.0.1", **environment}
    return subprocess.run(["bash", EXAMPLES / "launch.sh", *arguments], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("name", LARGE)
def test_a_node_is_started_with_the_algorithm_and_its_configuration(name, tmp_path):
    algorithm, _ = LARGE[name]
    done = launch(tmp_path, "64", algorithm, f"examples/{name}", "optim.lr=1e-6", NODES="8")
    assert done.returncode == 0, done.stderr
    given = done.stdout.split()
    assert given[given.index("--nnodes") + 1] == "8"
    assert given[-4:] == ["-m", f"megatron_lite.{algorithm}", f"examples/{name}", "optim.lr=1e-6"]


def test_another_number_of_nodes_is_refused(tmp_path):
    done = launch(tmp_path, "64", "sft", "examples/sft/65b.yaml", NODES="3")
    assert done.returncode == 2
    assert done.stderr == "error: 3 nodes x 8 GPUs = 24 processes: this configuration is for 64\n"


def test_the_slurm_script_is_sound():
    assert subprocess.run(["bash", "-n", EXAMPLES / "slurm_65b.sh"]).returncode == 0
