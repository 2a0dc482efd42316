"""The launch scripts: right sizes, right syntax, and a wrong world is refused before anything starts."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from megatron_lite.config import load_config, resolve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "pretrain_65b"
WORLDS = (64, 128, 256, 512, 1024, 2048)


def launch(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """With a torchrun that shows what it was given."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    variables = {**os.environ, "TORCHRUN": str(torchrun), **environment}
    return subprocess.run(["bash", EXAMPLES / script, "optim.lr=1e-4"], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("world", WORLDS)
def test_torchrun_is_started_for_the_world_with_its_configuration(world, tmp_path):
    done = launch(f"torchrun_{world}.sh", tmp_path, MASTER="10.0.0.1", NODES=str(world // 8))
    assert done.returncode == 0, done.stderr
    given = done.stdout.split()
    assert given[given.index("--nnodes") + 1] == str(world // 8)
    assert given[given.index("--nproc-per-node") + 1] == "8"
    assert given[given.index("--rdzv-endpoint") + 1] == "10.0.0.1:29500"
    assert given[-2:] == [f"examples/pretrain_65b/gpus_{world}.yaml", "optim.lr=1e-4"]


@pytest.mark.parametrize("world", WORLDS)
def test_another_number_of_nodes_is_refused(world, tmp_path):
    done = launch(f"torchrun_{world}.sh", tmp_path, MASTER="10.0.0.1", NODES="3")
    assert done.returncode == 2
    assert done.stderr == f"error: 3 nodes x 8 GPUs = 24 processes: this configuration is for {world}\n"


@pytest.mark.parametrize("world", WORLDS)
def test_slurm_asks_for_the_nodes_of_its_world(world):
    text = (EXAMPLES / f"slurm_{world}.sh").read_text()
    assert re.search(r"#SBATCH --nodes=(\d+)", text).group(1) == str(world // 8)
    assert f"launch.sh {world} " in text
    assert subprocess.run(["bash", "-n", EXAMPLES / f"slurm_{world}.sh"]).returncode == 0


@pytest.mark.parametrize("world", WORLDS)
def test_the_configuration_is_the_reference_run_on_its_world(world):
    config = load_config(EXAMPLES / f"gpus_{world}.yaml")
    resolved = resolve(config, world)
    assert (config.model.num_hidden_layers, config.model.hidden_size, config.model.vocab_size) == (80, 8192, 128000)
    assert resolved.tokens_per_step == 4_194_304
    assert config.train.steps == 3_500_000_000_000 // resolved.tokens_per_step
