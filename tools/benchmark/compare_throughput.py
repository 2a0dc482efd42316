"""Our training step against PyTorch's own parallelism: the same model, layout, threads, float32, no clipping.

Both run in turn, as many rounds as asked, so that a machine that slows down slows both. For each shape of the model
(workload.py) and layout a row gives both medians in tokens/s, the median of the rounds' ratios (ours / peer; above 1 we
are faster), and the same of processor seconds of all ranks (peer / ours), which say more where others use the machine.
`auto` is our default of zero_regather, with what it became. The peer regathers each microbatch without a pipeline, but
can hold on for the step, and always holds on with one.

    python tools/benchmark/compare_throughput.py --shapes h256 h320 --layouts 1 d2 p2 t2 t2p2d2 --rounds 3
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

from workload import SHAPES, options_of

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
    def policies(self) -> tuple[tuple[str, str], ...]:
        """(ours, the peer's) of each row, the defaults first. Without data ranks nothing is gathered: both are one."""
        usual = "step" if self.pipeline > 1 else "microbatch"
        if self.data == 1:
            return (("auto", usual),)
        return tuple(dict.fromkeys((("auto", usual), ("auto", "step"), ("microbatch", usual))))


def parse_layout(text: str) -> Layout:
    sizes = dict(re.findall(r"([tpd])([1-9]\d*)", text))
    written = "".join(axis + size for axis, size in sizes.items())
    if text != "1" and (not sizes or written != text):
        raise argparse.ArgumentTypeError(f"{text!r} is no layout; write 1, or sizes like t2, p2d2, t2p2d2")
    return Layout(text, **{AXES[axis]: int(size) for axis, size in sizes.items()})


@dataclass(frozen=True)
class Speed:
    """What one run printed; `regather` is the policy that it ran with."""

    tokens: float  # a second
    processor: float  # seconds a step, of all ranks
    regather: str


def speed_of(script: str, layout: Layout, arguments: list[str]) -> Speed:
    result = run_script(script, layout, arguments)
    return Speed(result["tokens_per_second"], result["processor_seconds"], result["regather"])


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


def compare(shape: str, layout: Layout, rounds: int, arguments: list[str]) -> list[str]:
    """The table's rows of one shape on one layout."""
    arguments = [*options_of(SHAPES[shape]), *arguments]
    pairs: dict[tuple[str, str], list[tuple[Speed, Speed]]] = {policies: [] for policies in layout.policies}
    sides = [("ours.py", ours) for ours, _ in pairs] + [("torch_native_peer.py", theirs) for _, theirs in pairs]
    for number in range(rounds):
        speeds: dict[tuple[str, str], Speed] = {}
        for script, policy in dict.fromkeys(sides):
            speed = speed_of(script, layout, [*arguments, f"--regather={policy}"])
            speeds[script, policy] = speed
            where = f"{shape} {layout.name} round {number + 1}: {script} ({policy}: {speed.regather})"
            print(f"{where} {speed.tokens:,.0f} tokens/s, {speed.processor:.2f} processor s", file=sys.stderr)
        for (ours, theirs), found in pairs.items():
            found.append((speeds["ours.py", ours], speeds["torch_native_peer.py", theirs]))
    return [row(shape, layout, ours, theirs, found) for (ours, theirs), found in pairs.items()]


def row(shape: str, layout: Layout, ours: str, theirs: str, pairs: list[tuple[Speed, Speed]]) -> str:
    took = pairs[0][0].regather
    named = ours if ours == took else f"{ours}: {took}"
    our_speed, peer_speed = (statistics.median(pair[side].tokens for pair in pairs) for side in (0, 1))
    ratio = statistics.median(our.tokens / their.tokens for our, their in pairs)
    processor = statistics.median(their.processor / our.processor for our, their in pairs)
    cells = [
        shape,
        layout.name,
        named,
        theirs,
        f"{our_speed:,.0f}",
        f"{peer_speed:,.0f}",
        f"{ratio:.2f}",
        f"{processor:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare our training step with PyTorch's own parallelism.",
        epilog="Further options (--steps, --hidden-size, ...) go to both sides; see workload.py.",
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--layouts", nargs="+", type=parse_layout, default=[parse_layout(n) for n in ("1", "d2", "p2", "t2", "t2p2d2")]
    )
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    print("| shape | layout | regather | peer's | ours, tokens/s | peer, tokens/s | ratio | processor |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for shape in options.shapes:
        for layout in options.layouts:
            print("\n".join(compare(shape, layout, options.rounds, arguments)), flush=True)


if __name__ == "__main__":
    main()
