"""Our training step against PyTorch's own parallelism: the same model, layout, threads, float32, no clipping.

Both run in turn, as many rounds as asked, so that a machine that slows down slows both. For each layout a row gives
both medians in tokens/s and the median of the rounds' ratios (ours / peer; above 1 we are faster). With a pipeline both
of our zero_regather policies are measured; the peer's is `step`.

    python tools/benchmark/compare_throughput.py --layouts 1 d2 p2 t2 t2p2d2 --rounds 3
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
AXES = {"t": "tensor", "p": "pipeline", "d": "data"}


@dataclass(frozen=True)
class Layout:
    """Sizes of the three axes, written like t2p2d2; 1 stands for one process."""

    name: str
    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def regather_policies(self) -> tuple[str, ...]:
        """Without a pipeline the peer gathers for each microbatch, and so do we."""
        return ("step", "microbatch") if self.pipeline > 1 else ("microbatch",)


def parse_layout(text: str) -> Layout:
    sizes = dict(re.findall(r"([tpd])([1-9]\d*)", text))
    written = "".join(axis + size for axis, size in sizes.items())
    if text != "1" and (not sizes or written != text):
        raise argparse.ArgumentTypeError(f"{text!r} is no layout; write 1, or sizes like t2, p2d2, t2p2d2")
    return Layout(text, **{AXES[axis]: int(size) for axis, size in sizes.items()})


def tokens_per_second(script: str, layout: Layout, arguments: list[str]) -> float:
    return run_script(script, layout, arguments)["tokens_per_second"]


def run_script(script: str, layout: Layout, arguments: list[str]) -> Any:
    """Run a script of this folder on a layout and return the JSON that it prints last; its error output goes to ours
    when it fails.
    """
    sizes = [f"--{axis}={getattr(layout, axis)}" for axis in AXES.values()]
    launcher = [sys.executable]
    if layout.world > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={layout.world}"]
    done = subprocess.run([*launcher, str(HERE / script), *sizes, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr}\n{script} failed on layout {layout.name} with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(layout: Layout, rounds: int, arguments: list[str]) -> list[str]:
    """The table's rows of one layout."""
    peer: list[float] = []
    ours: dict[str, list[float]] = {policy: [] for policy in layout.regather_policies}
    for number in range(rounds):
        peer.append(tokens_per_second("torch_native_peer.py", layout, arguments))
        for policy, speeds in ours.items():
            speeds.append(tokens_per_second("ours.py", layout, [*arguments, f"--regather={policy}"]))
            print(
                f"{layout.name} round {number + 1}: peer {peer[-1]:,.0f}, ours ({policy}) {speeds[-1]:,.0f} tokens/s",
                file=sys.stderr,
            )
    rows = []
    for policy, speeds in ours.items():
        ratio = statistics.median(our / their for our, their in zip(speeds, peer, strict=True))
        medians = f"{statistics.median(peer):,.0f} | {statistics.median(speeds):,.0f}"
        rows.append(f"| {layout.name} | {policy} | {medians} | {ratio:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare our training step with PyTorch's own parallelism.",
        epilog="Further options (--steps, --hidden-size, ...) go to both sides; see workload.py.",
    )
    parser.add_argument(
        "--layouts", nargs="+", type=parse_layout, default=[parse_layout(n) for n in ("1", "d2", "p2", "t2", "t2p2d2")]
    )
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    print(
        "| layout | regather | peer, tokens/s | ours, tokens/s | ratio |\n| --- | --- | ---: | ---: | ---: |",
        flush=True,
    )
    for layout in options.layouts:
        print("\n".join(compare(layout, options.rounds, arguments)), flush=True)


if __name__ == "__main__":
    main()
