"""How fast curation reads each format; the whole pipeline on a pool and on Ray; and how its cost grows with the text.

    python tools/benchmark/measure_curation.py [--html DIR] [--megabytes 60] [--rounds 3] [--slope 10 20 40 80]

The text is that of real_text.py, written again in each format, so that every reader reads the same documents; HTML is
what the quickstart has fetched, PostgreSQL's and Python's pages. Rates are MB of documents' text (UTF-8) a second of
one core's time, and for the pipeline a second by the clock; of several rounds the best, since other programs only slow
one down. Works in a folder of its own and removes it.
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import zstandard
from real_text import first_megabytes, real_texts

from megatron_lite.config.load import check_tree
from megatron_lite.curation.config import CurationConfig
from megatron_lite.curation.engine import Engine, Pool, Row
from megatron_lite.curation.engine.ray_tasks import RayTasks
from megatron_lite.curation.pipeline import curate
from megatron_lite.curation.report import text_bytes
from megatron_lite.curation.rules.table import RULES as CATALOGUE

WARC = (
    "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://example.org/{number}\r\n"
    "WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012}>\r\n"
    "Content-Type: {content}\r\nContent-Length: {length}\r\n\r\n"
)
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"


def write_formats(documents: list[str], pages: list[bytes], folder: Path) -> dict[str, dict]:
    """The documents and pages in each format; the sources of a configuration, by name."""
    lines = b"".join(orjson.dumps({"text": text, "url": f"http://e/{n}"}) + b"\n" for n, text in enumerate(documents))
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines, 3))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": documents}), folder / "a.parquet", compression="zstd", row_group_size=1000
    )
    wet = (warc("conversion", n, "text/plain", text.encode()) for n, text in enumerate(documents))
    (folder / "a.warc.wet.gz").write_bytes(b"".join(gzip.compress(record) for record in wet))
    crawl = (warc("response", n, "application/http; msgtype=response", HTTP + page) for n, page in enumerate(pages))
    (folder / "a.warc.gz").write_bytes(b"".join(gzip.compress(record) for record in crawl))
    for kind, contents in (("text", [text.encode() for text in documents]), ("html", pages)):
        (folder / kind).mkdir()
        for number, content in enumerate(contents):
            (folder / kind / f"{number:06}.{kind}").write_bytes(content)
    return {
        "jsonl": {"kind": "jsonl", "paths": [str(folder / "a.jsonl")]},
        "jsonl.gz": {"kind": "jsonl", "paths": [str(folder / "a.jsonl.gz")]},
        "jsonl.zst": {"kind": "jsonl", "paths": [str(folder / "a.jsonl.zst")]},
        "parquet": {"kind": "parquet", "paths": [str(folder / "a.parquet")]},
        "wet.gz": {"kind": "wet", "paths": [str(folder / "a.warc.wet.gz")]},
        "files": {"kind": "files", "paths": [str(folder / "text")]},
        "warc.gz": {"kind": "warc", "paths": [str(folder / "a.warc.gz")]},
        "html": {"kind": "files", "paths": [str(folder / "html")]},
    }


def warc(kind: str, number: int, content: str, block: bytes) -> bytes:
    return WARC.format(kind=kind, number=number, content=content, length=len(block)).encode() + block + b"\r\n\r\n"


class Here:
    """An engine in this process."""

    def map(self, function, items) -> Iterator:
        yield from ((index, function(item)) for index, item in enumerate(items))

    def close(self) -> None:
        pass


def measure_formats(sources: dict[str, dict], html_bytes: int, folder: Path, rounds: int) -> None:
    print(f"{'reading':<12}{'documents':>10}{'MB text':>10}{'MB read':>10}{'MB/s of text':>14}{'MB/s read':>12}")
    for name, source in sources.items():
        best = None
        for round_number in range(rounds):
            tree = base(folder / f"{name}-{round_number}", {"source": source}) | {"dedup": NOTHING}
            rows = curate(check_tree(tree, CurationConfig), Here()).finished["ingest"]
            seconds = sum(row.cpu_seconds for row in rows)
            best = min(best or (seconds, rows), (seconds, rows), key=lambda pair: pair[0])
        seconds, rows = best
        text = sum(text_bytes(row) for row in rows) / 1e6
        # A page is unpacked before anything else: what counts is its HTML.
        read = html_bytes / 1e6 if name in ("warc.gz", "html") else sum(row.input_bytes for row in rows) / 1e6
        count = sum(row.counts["tally"]["source"]["left"][0] for row in rows)
        print(f"{name:<12}{count:>10,}{text:>10.1f}{read:>10.1f}{text / seconds:>14.1f}{read / seconds:>12.1f}")


EVERYTHING = {"paragraphs": {}, "lines": {}, "substring": {}}
NOTHING = {"url": False, "text": None, "fuzzy": None}
# Documentation is not what these rules' thresholds are made for: without them all is measured and nothing dropped, so
# that deduplication has the whole text to work on.
HEURISTICS = ("gopher_repetition", "gopher_quality", "fineweb")
RULES = {
    "rules": {
        "prose": {
            name: {field.name: None for field in fields(CATALOGUE[name]) if field.name.startswith(("min_", "max_"))}
            for name in HEURISTICS
        }
    }
}


def base(output: Path, sources: dict[str, dict]) -> dict:
    return {"output": str(output), "shard_bytes": 4_000_000, "sources": sources}


def measure_pipeline(source: dict, folder: Path, rounds: int) -> None:
    """The heuristic rules and every step of deduplication, from JSONL to training and validation text."""
    engines = {
        "pool, 1 worker": lambda: Pool(1),
        "pool, 2 workers": lambda: Pool(2),
        "Ray, 1 worker": lambda: RayTasks(1, None),
        "Ray, 2 workers": lambda: RayTasks(2, None),
    }
    print(f"\n{'pipeline':<18}{'MB text':>9}{'start s':>9}{'run s':>9}{'MB/s':>9}{'MB/s of processor':>20}")
    for name, start in engines.items():
        best = (float("inf"), 0.0, 0.0, 0.0)
        for round_number in range(rounds):
            tree = base(folder / f"{name}-{round_number}", {"source": {**source, "rules": "prose"}})
            begun = time.perf_counter()
            with start() as engine:
                warm(engine)
                started = time.perf_counter()
                finished = curate(check_tree(tree | RULES | {"dedup": EVERYTHING}, CurationConfig), engine).finished
                seconds = time.perf_counter() - started
            text = sum(text_bytes(row) for row in finished["ingest"]) / 1e6
            cpu = sum(row.cpu_seconds for rows in finished.values() for row in rows)
            best = min(best, (seconds, started - begun, text, cpu))
        seconds, starting, text, cpu = best
        print(f"{name:<18}{text:>9.1f}{starting:>9.1f}{seconds:>9.1f}{text / seconds:>9.1f}{text / cpu:>20.1f}")


def measure_slope(megabytes: list[int], folder: Path, rounds: int) -> None:
    """Seconds of processor for a megabyte of text, of each stage with its steps, and what it writes, by size.

    Sizes take turns, so that a machine that slows down slows each.
    """
    paths = {size: folder / f"{size}.jsonl" for size in megabytes}
    for size, path in paths.items():
        documents = first_megabytes(real_texts(), size)
        path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in documents))
    measured = [{size: measure_stages(path, folder) for size, path in paths.items()} for _ in range(rounds)]
    print(f"\n{'MB of text':<12}{'ms of processor for a MB, bytes written for a byte of text':>60}")
    for size in megabytes:
        text, costs = min((one[size] for one in measured), key=lambda found: found[1]["all"])
        shown = (f"{name} {1e9 * cpu / text:.1f}, {written / text:.2f}" for name, (cpu, written) in costs.items())
        print(f"{text / 1e6:<12.1f}{' | '.join(shown)}")


def measure_stages(path: Path, folder: Path) -> tuple[int, dict[str, tuple[float, int]]]:
    """Bytes of text, and each stage's costs."""
    source = {"kind": "jsonl", "paths": [str(path)], "rules": "prose"}
    with tempfile.TemporaryDirectory(dir=folder) as output:
        tree = base(Path(output), {"source": source}) | RULES | {"dedup": EVERYTHING}
        finished = curate(check_tree(tree, CurationConfig), Here()).finished
    return sum(text_bytes(row) for row in finished["ingest"]), costs_of(finished)


def costs_of(finished: dict[str, list[Row]]) -> dict[str, tuple[float, int]]:
    """Seconds of processor and bytes written, of each stage with its steps, and of all."""
    costs: dict[str, tuple[float, int]] = {}
    for name, rows in finished.items():
        seconds, written = costs.get(name.split(".")[0], (0.0, 0))
        seconds += sum(row.cpu_seconds for row in rows)
        written += sum(file.bytes for row in rows for made in row.outputs.values() for file in made)
        costs[name.split(".")[0]] = seconds, written
    seconds, written = zip(*costs.values(), strict=True)
    return costs | {"all": (sum(seconds), sum(written))}


def warm(engine: Engine) -> None:
    """Have the workers started and their modules imported."""
    for _ in engine.map(_import, range(4)):
        pass


def _import(_: int) -> None:
    import megatron_lite.curation.pipeline  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, default="runs/quickstart/raw", metavar="DIR", help="where pages lie")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-formats", dest="formats", action="store_false", help="the slope alone")
    parser.add_argument("--slope", type=int, nargs="*", default=[], metavar="MB", help="sizes to compare")
    options = parser.parse_args()
    files = sorted(path for path in options.html.rglob("*.html") if path.is_file())
    if options.formats and not files:
        parser.error(f"--html {options.html}: no page is there; run examples/quickstart.sh, or name another folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.formats:
            (folder / "formats").mkdir()
            documents = first_megabytes(real_texts(), options.megabytes)
            pages = [path.read_bytes() for path in islice(files, 4000)]
            sources = write_formats(documents, pages, folder / "formats")
            measure_formats(sources, sum(map(len, pages)), folder, options.rounds)
            measure_pipeline(sources["jsonl"], folder, options.rounds)
        if options.slope:
            measure_slope(options.slope, folder, options.rounds)


if __name__ == "__main__":
    main()
