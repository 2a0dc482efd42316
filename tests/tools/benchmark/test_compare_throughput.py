"""The comparison reads layouts as written and takes ratios round by round; the peer is right on every layout."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from workload import SHAPES

from tools.benchmark.compare_throughput import Speed, compare, parse_layout

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
        ("1", (1, 1, 1), (("auto", "microbatch"),)),
        ("t2p2", (2, 2, 1), (("auto", "step"),)),
        ("d2", (1, 1, 2), (("auto", "microbatch"), ("auto", "step"), ("microbatch", "microbatch"))),
        ("t2p4d3", (2, 4, 3), (("auto", "step"), ("microbatch", "step"))),
    ],
)
def test_layouts_are_read_as_written_and_meet_the_peers_usual_policy_and_their_own(text, sizes, policies):
    layout = parse_layout(text)
    assert (layout.tensor, layout.pipeline, layout.data) == sizes
    assert layout.policies == policies


@pytest.mark.parametrize("text", ["", "2", "x2", "t", "t2q3", "t2 p2", "t0", "t2t4"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no layout"):
        parse_layout(text)


def test_a_ratio_is_the_median_of_rounds_and_all_sides_run_in_turn(monkeypatch):
    speeds = {
        ("ours.py", "auto"): [150.0, 20.0, 220.0],
        ("ours.py", "microbatch"): [50.0, 5.0, 90.0],
        ("torch_native_peer.py", "microbatch"): [50.0, 5.0, 50.0],
        ("torch_native_peer.py", "step"): [100.0, 10.0, 200.0],
    }
    ran = []

    def run(script, layout, arguments):
        assert arguments[:-1] == ["--hidden-size=8", "--steps=4"]
        policy = arguments[-1].removeprefix("--regather=")
        ran.append((script, policy))
        processor = 0.5 if script == "ours.py" else 2.0
        return Speed(speeds[script, policy].pop(0), processor, "step" if policy == "auto" else policy)

    monkeypatch.setattr("tools.benchmark.compare_throughput.speed_of", run)
    monkeypatch.setitem(SHAPES, "small", {"hidden_size": 8})
    order = list(speeds)
    assert compare("small", parse_layout("d2"), 3, ["--steps=4"]) == [
        "| small | d2 | auto: step | microbatch | 150 | 50 | 4.00 | 4.00 |",
        "| small | d2 | auto: step | step | 150 | 100 | 1.50 | 4.00 |",
        "| small | d2 | microbatch | microbatch | 50 | 50 | 1.00 | 4.00 |",
    ]
    assert ran == order * 3


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
        (2, {"data": 2, "accumulation": 2, "regather": "step"}),
        (8, {"tensor": 2, "pipeline": 2, "data": 2, "accumulation": 2}),
    ],
)
def test_the_peer_trains_the_same_on_every_layout(world, sizes):
    assert peer(world, **sizes)["losses"] == pytest.approx(peer(accumulation=4)["losses"], rel=1e-5)
