"""The comparison reads layouts as written and takes ratios round by round; the peer is right on every layout."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark.compare_throughput import compare, parse_layout

BENCHMARK = Path(__file__).parents[3] / "tools" / "benchmark"
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "sequence_length": 16,
    "steps": 3,
    "warmup": 0,
}


@pytest.mark.parametrize(
    ("text", "sizes", "policies"),
    [
        ("1", (1, 1, 1), ("microbatch",)),
        ("d2", (1, 1, 2), ("microbatch",)),
        ("t2p4d3", (2, 4, 3), ("step", "microbatch")),
    ],
)
def test_layouts_are_read_as_written(text, sizes, policies):
    layout = parse_layout(text)
    assert (layout.tensor, layout.pipeline, layout.data) == sizes
    assert layout.regather_policies == policies


@pytest.mark.parametrize("text", ["", "2", "x2", "t", "t2q3", "t2 p2", "t0", "t2t4"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no layout"):
        parse_layout(text)


def test_the_ratio_is_the_median_of_the_rounds_and_both_sides_run_in_turn(monkeypatch):
    speeds = {
        "torch_native_peer.py": [100.0, 10.0, 200.0],
        "step": [150.0, 20.0, 220.0],
        "microbatch": [50.0, 5.0, 90.0],
    }
    ran = []

    def run(script, layout, arguments):
        side = script if script == "torch_native_peer.py" else arguments[-1].removeprefix("--regather=")
        ran.append(side)
        return speeds[side].pop(0)

    monkeypatch.setattr("tools.benchmark.compare_throughput.tokens_per_second", run)
    rows = compare(parse_layout("p2"), 3, [])
    assert rows == ["| p2 | step | 100 | 150 | 1.50 |", "| p2 | microbatch | 100 | 50 | 0.50 |"]
    assert ran == ["torch_native_peer.py", "step", "microbatch"] * 3


def peer(world=1, **sizes):
    launcher = [sys.executable]
    if world > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | sizes).items()]
    done = subprocess.run([*launcher, BENCHMARK / "torch_native_peer.py", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
def test_the_peer_counts_the_tokens_of_its_median_step():
    result = peer(accumulation=4, steps=3)
    assert result["tokens_per_second"] == pytest.approx(4 * 16 / sorted(result["seconds"])[1])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("world", "sizes"),
    [
        (2, {"tensor": 2, "accumulation": 4}),
        (2, {"pipeline": 2, "accumulation": 4}),
        (2, {"data": 2, "accumulation": 2}),
        (8, {"tensor": 2, "pipeline": 2, "data": 2, "accumulation": 2}),
    ],
)
def test_the_peer_trains_the_same_on_every_layout(world, sizes):
    assert peer(world, **sizes)["losses"] == pytest.approx(peer(accumulation=4)["losses"], rel=1e-5)
