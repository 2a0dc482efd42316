"""Indices, blends and reading of samples, beside megatron-core 0.16.1 and a bare memory map.

    python tools/benchmark/measure_index.py [--documents 100_000_000] [--directory runs/benchmark/index]

The large data set is an index of documents of 20 to 180 tokens over a .bin without content, so it takes 20 bytes a
document on the disk. Every measurement runs in a process of its own; seconds are by the clock and by the processor,
memory is what the process held at most beyond what it had after its imports, pages of mapped files included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import run_with_peer

from megatron_lite.data import _helpers
from megatron_lite.data.indexed import HEADER, MAGIC, bin_path, idx_path, open_indexed
from megatron_lite.data.megatron_order import MegatronDataset
from megatron_lite.data.samples import GPTDataset, KeyedOrder

LENGTH = 8192
SEED = 1234
BLOCK = 1 << 22  # documents written at once
BLENDED = 1 << 18  # samples of a blend
TIMES = 5
SOURCES = (3, 10, 100, 1000)
READ_TOKENS = 200_000_000  # of the data sets that samples are read from
READ_SAMPLES = 4000


def write_large(prefix: Path, documents: int) -> None:
    """int32, one sequence a document; the .bin is a hole of the right size."""
    rng = np.random.default_rng(0)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.concatenate(
        [rng.integers(20, 181, min(BLOCK, documents - at), dtype=np.int32) for at in range(0, documents, BLOCK)]
    )
    with idx_path(prefix).open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 4, documents, documents + 1))
        file.write(lengths.tobytes())
        end = 0
        for at in range(0, documents, BLOCK):
            ends = end + 4 * np.cumsum(lengths[at : at + BLOCK], dtype=np.int64)
            file.write(np.concatenate([[end], ends[:-1]]).astype(np.int64).tobytes())
            end = int(ends[-1])
        for at in range(0, documents + 1, BLOCK):
            file.write(np.arange(at, min(at + BLOCK, documents + 1)).tobytes())
    with bin_path(prefix).open("wb") as file:
        file.truncate(end)


def memory(field: str) -> int:
    """Bytes of this process, by /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    before, begin, processor = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    measured = {
        "seconds": time.perf_counter() - begin,
        "processor": time.process_time() - processor,
        "megabytes": (memory("VmHWM") - before) / 1e6,
        "samples": len(result),
    }
    assert len(result) > 0
    return measured


def stable(prefix: Path) -> GPTDataset:
    cache = prefix.parent / "cache"
    return GPTDataset(open_indexed(prefix, cache), LENGTH, KeyedOrder(SEED), cache_dir=cache)


def megatron_order(prefix: Path) -> MegatronDataset:
    cache = prefix.parent / "cache"
    return MegatronDataset(open_indexed(prefix, cache), LENGTH, SEED, None, cache_dir=cache)


def megatron_core(prefix: Path) -> Callable[[], Any]:
    """Builds its own GPTDataset over one epoch, once called."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = None, 0, -1, {}

    config = GPTDatasetConfig(
        random_seed=SEED, sequence_length=LENGTH, blend=([str(prefix)], None), split="1", tokenizer=Tokenizer(),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        path_to_cache=str(prefix.parent / "cache"),
    )  # fmt: skip

    def build() -> Any:
        source = IndexedDataset(str(prefix))
        indices = np.arange(len(source), dtype=np.int32)
        return GPTDataset(source, str(prefix), indices, None, Split.train, config)

    return build


def measure_index(prefix: Path, kind: str) -> dict[str, float]:
    if kind == "megatron-core":
        return timed(megatron_core(prefix))  # its imports are not timed
    return timed(lambda: stable(prefix) if kind == "stable" else megatron_order(prefix))


def measure_blend(kind: str) -> dict[str, float]:
    """Processor nanoseconds a sample, by the number of data sets; the median of several times."""
    return {str(sources): statistics.median(_blend(kind, sources) for _ in range(TIMES)) for sources in SOURCES}


def _blend(kind: str, sources: int) -> float:
    weights = np.random.default_rng(sources).random(sources) + 0.01
    weights /= weights.sum()
    if kind == "megatron-core":
        from megatron.core.datasets import helpers

        which, samples = np.zeros(BLENDED, np.int16), np.zeros(BLENDED, np.int64)
        begin = time.process_time()
        helpers.build_blending_indices(which, samples, weights, sources, BLENDED, False)
    else:
        begin = time.process_time()
        _helpers.blend(weights.tolist(), 0, BLENDED)
    return (time.process_time() - begin) / BLENDED * 1e9


def measure_reading(directory: Path, dtype: str, mean: int) -> dict[str, float]:
    """Random samples a processor second, from documents of about `mean` tokens and from a bare memory map."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(mean // 2, mean * 3 // 2, READ_TOKENS // mean, dtype=np.int32)
    prefix, total = directory / f"read-{dtype}-{mean}", int(lengths.sum())
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * np.dtype(dtype).itemsize
    directory.mkdir(parents=True, exist_ok=True)
    np.arange(total, dtype=np.uint32).astype(dtype).tofile(bin_path(prefix))
    with idx_path(prefix).open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, {"uint16": 8, "int32": 4}[dtype], len(lengths), len(lengths) + 1))
        for array in (lengths, pointers, np.arange(len(lengths) + 1)):
            file.write(array.tobytes())
    dataset = GPTDataset(open_indexed(prefix), LENGTH, KeyedOrder(SEED))
    tokens = np.memmap(bin_path(prefix), dtype=dtype, mode="r")
    places = _helpers.permute(0, READ_SAMPLES, len(dataset), SEED, 0, 0).tolist()  # the same samples
    row = np.empty(LENGTH + 1, np.int64)

    def bare() -> None:
        for place in places:
            row[:] = tokens[place * LENGTH : (place + 1) * LENGTH + 1]

    def one_at_a_time() -> None:
        for i in range(READ_SAMPLES):
            dataset.read(i, 1)

    def eight_at_a_time() -> None:
        for i in range(0, READ_SAMPLES, 8):
            dataset.read(i, 8)

    ways = {"bare": bare, "one": one_at_a_time, "eight": eight_at_a_time}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, work in ways.items():
            begin = time.process_time()
            work()
            rates[name].append(READ_SAMPLES / (time.process_time() - begin))
    bin_path(prefix).unlink()
    idx_path(prefix).unlink()
    return {name: max(values) for name, values in rates.items()}


def in_its_own_process(task: str, *arguments: str) -> dict[str, float]:
    command = [__file__, "--task", task, *arguments]
    if "megatron-core" in arguments:
        output = run_with_peer("megatron_core", ["-W", "ignore", *command])
    else:
        output = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def report(directory: Path, documents: int, peer: bool) -> None:
    prefix = directory / f"large-{documents}"
    if not idx_path(prefix).exists():
        write_large(prefix, documents)
    for file in (prefix.parent / "cache").glob("*"):
        file.unlink()
    rows = [("order: stable, first time", "stable"), ("order: stable, again", "stable")]
    rows += [("order: megatron, first time", "megatron"), ("order: megatron, again", "megatron")]
    rows += [("megatron-core 0.16.1, first time", "megatron-core")] if peer else []
    print(f"| index of {documents:,} documents at {LENGTH} | samples | seconds | processor | MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, kind in rows:
        one = in_its_own_process("index", str(prefix), kind)
        print(
            f"| {name} | {one['samples']:,} | {one['seconds']:.3f} | {one['processor']:.3f} | {one['megabytes']:,.0f} |"
        )
    print("\n| blend, processor ns a sample | " + " | ".join(f"{n:,} data sets" for n in SOURCES) + " |")
    print("| --- |" + " ---: |" * len(SOURCES))
    for kind in ("ours", "megatron-core") if peer else ("ours",):
        times = in_its_own_process("blend", kind)
        print(f"| {kind} | " + " | ".join(f"{times[str(n)]:.0f}" for n in SOURCES) + " |")
    print("\n| random samples a processor second | memory map | one at a time | share | eight | share |")
    print("| --- |" + " ---: |" * 5)
    for dtype in ("int32", "uint16"):
        for mean in (100, 900):
            rates = in_its_own_process("reading", str(directory), dtype, str(mean))
            one, eight = (f"{rates[way]:,.0f} | {rates[way] / rates['bare']:.0%}" for way in ("one", "eight"))
            print(f"| {dtype}, documents of {mean} | {rates['bare']:,.0f} | {one} | {eight} |")


TASKS = {
    "index": lambda prefix, kind: measure_index(Path(prefix), kind),
    "blend": measure_blend,
    "reading": lambda directory, dtype, mean: measure_reading(Path(directory), dtype, int(mean)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--directory", type=Path, default=Path("runs/benchmark/index"))
    parser.add_argument("--no-peer", action="store_true", help="leave megatron-core out")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, *arguments = options.task
        print(json.dumps(TASKS[name](*arguments)))
    else:
        report(options.directory, options.documents, not options.no_peer)


if __name__ == "__main__":
    main()
