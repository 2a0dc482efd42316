"""JSONL to .bin: ours, with our encoder and with SentencePiece's, beside Megatron's loop, on one core and on two.

    python tools/benchmark/compare_preprocess.py [--input F.jsonl] [--tokenizer-model T] [--rounds 3]

The text is all of real_text.py, unless another is given, and the tokenizer of 128,000 pieces is trained on it; both
stay in runs/benchmark. All sides run in turn, pinned to the same cores with as many workers, so that a machine that
slows down slows each. A row gives medians over the rounds: MB of JSONL a second of wall-clock time and of processor
time (all processes), and the median of the rounds' ratios to Megatron's loop. The files of all sides must be equal byte
for byte. megatron-core is installed into runs/peers where it is missing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peers import peer
from real_text import real_texts

from megatron_lite.files import partial_path, publish

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "runs" / "benchmark"
SIDES = {
    "Megatron's loop": ["megatron_preprocess.py"],
    "ours, SentencePiece": ["our_preprocess.py", "--encoder", "sentencepiece"],
    "ours": ["our_preprocess.py"],
}


@dataclass(frozen=True)
class Run:
    wall: float  # MB a second
    processor: float  # MB a second of processor time


def write_real_text(path: Path) -> None:
    """Without the texts with U+2581, of which SentencePiece, but not ours, makes a space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (text for text in real_texts() if "\u2581" not in text)
    with partial_path(path).open("wb") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)
    publish(path)


def run_side(side: str, cores: list[int], options: argparse.Namespace, prefix: Path) -> Run:
    script, *flags = SIDES[side]
    files = {"--input": options.input, "--output-prefix": prefix, "--tokenizer-model": options.tokenizer_model}
    arguments = [str(part) for flag in files.items() for part in flag]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script), *flags, *arguments, "--workers", str(len(cores))],
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(f"{done.stderr}\n{script} failed with exit code {done.returncode}")
    megabytes, took = os.path.getsize(options.input) / 1e6, json.loads(done.stdout.splitlines()[-1])
    return Run(megabytes / took["seconds"], megabytes / took["processor"])


def written(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}_text_document.{suffix}").read_bytes() for suffix in ("bin", "idx")]


def compare(cores: list[int], options: argparse.Namespace) -> list[str]:
    """The table's rows for a number of cores."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side, its in runs.items():
            with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
                its.append(run_side(side, cores, options, Path(directory) / "d"))
                files = written(Path(directory) / "d")
            if side == "Megatron's loop":
                expected = files
            elif files != expected:
                sys.exit(f"{side} wrote other bytes than Megatron's loop")
            print(f"{len(cores)} cores, round {number + 1}: {side} {its[-1].wall:.2f} MB/s", file=sys.stderr)
    peer = runs["Megatron's loop"]
    rows = []
    for side, its in runs.items():
        wall, processor = (statistics.median(getattr(run, kind) for run in its) for kind in ("wall", "processor"))
        ratios = [
            statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in zip(its, peer, strict=True))
            for kind in ("wall", "processor")
        ]
        rows.append(f"| {len(cores)} | {side} | {wall:.2f} | {ratios[0]:.2f} | {processor:.2f} | {ratios[1]:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=FOLDER / "real_text.jsonl", metavar="F.jsonl")
    parser.add_argument("--tokenizer-model", type=Path, default=FOLDER / "tokenizer.model", metavar="T")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="how many (1 2)")
    parser.add_argument("--scratch", metavar="DIR", help="where the outputs are written (the system's)")
    options = parser.parse_args()
    peer("megatron_core")
    if not options.input.exists():
        write_real_text(options.input)
    if not options.tokenizer_model.exists():
        train = [sys.executable, str(HERE.parent / "train_tokenizer.py"), "--vocab-size", "128000"]
        prefix = options.tokenizer_model.with_suffix("")
        subprocess.run([*train, "--input", str(options.input), "--model-prefix", str(prefix)], check=True)
    available = sorted(os.sched_getaffinity(0))
    print(
        "| cores | | wall MB/s | ratio | MB per processor second | ratio |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for count in options.cores:
        print("\n".join(compare(available[:count], options)), flush=True)


if __name__ == "__main__":
    main()
