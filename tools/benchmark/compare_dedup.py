"""How fast deduplication is, beside other projects' MinHash, and what it costs as a corpus grows.

python tools/benchmark/compare_dedup.py [--megabytes 10 20 40 80] [--no-peers]

Rates are megabytes of UTF-8 text in a second of one core's time (CPU, so that a busy machine changes little), over the
documents of real_text.py. Peers are installed into runs/peers and sign the first of the same documents.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import peers
from real_text import first_megabytes, megabytes_of, real_texts

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup.exact import Exact
from megatron_lite.curation.dedup.fuzzy import Fuzzy
from megatron_lite.curation.dedup.paragraphs import LINES, PARAGRAPHS
from megatron_lite.curation.dedup.substring import Substring
from megatron_lite.curation.documents import Document
from megatron_lite.curation.engine import File, Pool, Row, Stage, run_stage
from megatron_lite.curation.engine.stage import file_checksum
from megatron_lite.curation.shards import ShardWriter
from megatron_lite.curation.stages.deduplicate import Corpus, Options, deduplicate
from megatron_lite.curation.tally import note_size, tally_of

PEER_MEGABYTES = {"rensa": 20, "datasketch": 10, "datatrove": 3}
SHARD_BYTES = 10_000_000
RANGES = 4
ROUNDS = 3  # of each granularity and size, the least counts: others on the machine only ever add
GRANULARITIES = {
    "text": Exact("text"),
    "words": Exact("words"),
    "fuzzy": Fuzzy(),
    "fuzzy, verified": Fuzzy(verify=0.7),
    "paragraphs": PARAGRAPHS,
    "lines": LINES,
    "substring": Substring(),
}


def cpu_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def compare_signatures(texts: Sequence[str], with_peers: bool) -> None:
    print("MinHash, from text to signatures of 112 permutations, MB/s on one core")
    chosen = first_megabytes(texts, 40)
    for name in _dedup.instruction_sets():
        seconds = cpu_seconds(lambda name=name: _dedup.band_hashes(chosen, 1, name))
        print(f"  {'here, ' + name:<20}{megabytes_of(chosen) / seconds:8.1f}")
    for name in PEER_MEGABYTES if with_peers else ():
        chosen = first_megabytes(texts, PEER_MEGABYTES[name])
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(chosen, file)
            file.flush()
            script = str(Path(__file__).with_name("sign_with_peer.py"))
            seconds = json.loads(peers.run_with_peer(name, [script, name, file.name]))["seconds"]
        print(f"  {name:<20}{megabytes_of(chosen) / seconds:8.1f}")


def compare_windows(texts: Sequence[str]) -> None:
    print("\nParts of the search for repeated passages, MB/s on one core")
    chosen = first_megabytes(texts, 40)
    size = megabytes_of(chosen)
    options = Substring()
    anchors = _dedup.anchors(chosen, options.window, options.anchor)
    print(f"  {'anchors':<20}{size / cpu_seconds(lambda: _dedup.anchors(chosen, options.window, options.anchor)):8.1f}")
    seconds = cpu_seconds(lambda: _dedup.windows(chosen, options.window, options.anchor, anchors))
    print(f"  {'all windows':<20}{size / seconds:8.1f}")


def write_shards(texts: Sequence[str], folder: Path) -> list[Path]:
    folder.mkdir()
    shards, rest = [], list(enumerate(texts))
    while rest:
        shards.append(folder / f"{len(shards):05d}.jsonl.zst")
        held = 0
        with ShardWriter(shards[-1]) as writer:
            while rest and held < SHARD_BYTES:
                number, text = rest.pop(0)
                document = Document(f"real/0/{number}", text, "real")
                note_size(document)
                writer.write(document)
                held += len(text.encode())
    return shards


def run_stages(options: Options, paths: Sequence[Path], folder: Path) -> dict[str, list[Row]]:
    """The rows of a granularity's stages by step, the last one's by "judge"."""
    files = tuple(File(str(path), path.stat().st_size, file_checksum(path)) for path in paths)
    corpus = Corpus(files, tuple(path.name.partition(".")[0] for path in paths), 0, RANGES)
    rows: dict[str, list[Row]] = {}
    with closing(Pool(1)) as engine:

        def run(stage: Stage) -> list[Row]:
            step = stage.name.partition(".")[2] or "judge"
            rows[step] = run_stage(stage, folder / "stages", engine)
            return rows[step]

        deduplicate("dedup", options, corpus, run)
    return rows


def measure(options: Options, texts: Sequence[str]) -> dict[str, list[Row]]:
    folder = Path(tempfile.mkdtemp())
    try:
        return run_stages(options, write_shards(texts, folder / "shards"), folder)
    finally:
        shutil.rmtree(folder)


def cpu_of(rows: dict[str, list[Row]]) -> float:
    return sum(row.cpu_seconds for some in rows.values() for row in some)


def show_costs(name: str, texts: Sequence[str], sizes: Sequence[float]) -> None:
    print(f"{name}: CPU milliseconds, and bytes handed on between steps, for each MB of text")
    for size in sizes:
        chosen = first_megabytes(texts, size)
        rows = min((measure(GRANULARITIES[name], chosen) for _ in range(ROUNDS)), key=cpu_of)
        megabytes = megabytes_of(chosen)
        tally = tally_of(row.counts["tally"] for row in rows["judge"])
        kept = sum(flow.left.bytes for flow in tally.values()) / 1e6
        seconds = {step: sum(row.cpu_seconds for row in some) for step, some in rows.items()}
        total = cpu_of(rows)
        parts = "  ".join(f"{step} {1000 * value / megabytes:.2f}" for step, value in seconds.items())
        print(f"  {megabytes:6.1f} MB  {megabytes / total:6.1f} MB/s  {1000 * total / megabytes:6.2f} ms = {parts}")
        between = {
            step: sum(file.bytes for row in some for files in row.outputs.values() for file in files)
            for step, some in rows.items()
            if step != "judge"
        }
        handed = "  ".join(f"{step} {value / megabytes:,.0f}" for step, value in between.items())
        whole = sum(between.values()) / megabytes
        print(f"             kept {kept / megabytes:6.1%}  {whole:,.0f} bytes = {handed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--no-peers", action="store_true", help="leave the other projects out")
    arguments = parser.parse_args()
    texts = list(real_texts())
    print(f"{len(texts)} documents, {megabytes_of(texts):.1f} MB")
    compare_signatures(texts, not arguments.no_peers)
    compare_windows(texts)
    distinct = list(dict.fromkeys(texts))
    print(f"\nWhole granularities over shards of {SHARD_BYTES / 1e6:.0f} MB, read and written, in {RANGES} ranges;")
    print(f"all but the first two after equal texts are gone, {megabytes_of(distinct):.1f} MB")
    for name in GRANULARITIES:
        show_costs(name, texts if name in ("text", "words") else distinct, arguments.megabytes)


if __name__ == "__main__":
    main()
