"""A small corpus of every kind, with whatever curation has to find in it, and the configuration that finds it."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
from support.curation_inputs import members, page, warc_record

from megatron_lite.config.load import check_tree
from megatron_lite.curation.config import CurationConfig

WORDS = "the of and to in is that it was for on are with as his they be at one have this from or had by hot but".split()
BAD_LINES = (b" ", b"{bad", b'{"text": "\xff"}', b'{"no": 1}', b'{"text": ""}')


def sentence(order: random.Random, words: int) -> str:
    return " ".join([order.choice(WORDS) + str(order.randrange(50)) for _ in range(words)]).capitalize() + "."


def text(order: random.Random, sentences: int = 8) -> str:
    lines = [" ".join(sentence(order, 12) for _ in range(2)) for _ in range(sentences // 2)]
    return "\n\n".join(lines)


def write_corpus(folder: Path, documents: int = 60, seed: int = 0) -> None:
    """web/*.jsonl and .jsonl.gz, papers.parquet, crawl.warc.gz, code/*.py: about a third is a duplicate or bad."""
    order = random.Random(seed)
    (folder / "web").mkdir(parents=True)
    (folder / "code").mkdir()
    passage = sentence(order, 70)
    boilerplate = "All rights are reserved by the people who have written this."
    texts = [text(order) for _ in range(documents)]
    lines = []
    for number, one in enumerate(texts):
        record = {"text": one, "url": f"http://web/{number}"}
        match number % 10:
            case 1:
                record["text"] = texts[number - 1]  # the same text
            case 2:
                record["url"] = "http://web/same"
            case 3:
                record["text"] = texts[number - 3] + " More."  # nearly the same
            case 4:
                record["text"] = f"{one}\n\n{passage}\n\n{boilerplate}"
            case 5:
                record["text"] = f"{boilerplate}\n\n{one} {passage}"
            case 6:
                record["text"] = "too short"
        lines.append(json.dumps(record).encode())
        if number % 7 == 0:
            lines.append(BAD_LINES[number // 7 % len(BAD_LINES)])
    (folder / "web/a.jsonl").write_bytes(b"\n".join(lines[::2]))
    (folder / "web/b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[1::2]))[:-20])
    papers = [text(order, 10) for _ in range(documents // 2)] + texts[:3]
    table = pyarrow.table({"text": papers, "year": list(range(len(papers)))})
    pyarrow.parquet.write_table(table, folder / "papers.parquet", row_group_size=8)
    pages = [warc_record(page(*text(order).split("\n\n")), f"http://crawl/{n}") for n in range(documents // 3)]
    pages[3] = warc_record(b"%PDF", http="HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n")
    (folder / "crawl.warc.gz").write_bytes(members(pages))
    for number in range(documents // 2):
        body = "".join(f"    x{order.randrange(9)} = {order.random()}\n" for _ in range(20))
        marker = "# This file is generated.\n" if number % 9 == 0 else ""
        (folder / f"code/{number}.py").write_text(f"{marker}def f{number % 20}():\n{body}")
    (folder / "code/data.py").write_bytes(b"\0\1\2")


def config_of(folder: Path, output: Path, **changes) -> CurationConfig:
    """Every stage switched on, shards and ranges small enough that there are several of each."""
    tree = {
        "output": str(output),
        "shard_bytes": 12_000,
        "sources": {
            "web": {"kind": "jsonl", "paths": [f"{folder}/web/*"], "rules": "web"},
            "papers": {
                "kind": "parquet",
                "paths": [f"{folder}/papers.parquet"],
                "fields": {"keep": ["year"]},
                "rules": "web",
                "options": {"gopher_repetition": None},
            },
            "crawl": {"kind": "warc", "paths": [f"{folder}/crawl.warc.gz"]},
            "code": {"kind": "files", "content": "code", "paths": [f"{folder}/code"], "rules": "code"},
        },
        "rules": {
            "web": {"gopher_quality": {"min_alphabetic_words": None, "min_stop_words": None}, "gopher_repetition": {}},
            "code": {"code": {"min_alphabetic": None}},
        },
        "dedup": {
            "paragraphs": {},
            "lines": {"minimum_count": 4},
            "substring": {"window": 30},
            "range_bytes": 100_000,
        },
        "split": {"valid_fraction": 0.2},
        **changes,
    }
    return check_tree(tree, CurationConfig)


def written(output: Path) -> dict[str, bytes]:
    """Everything that a run writes but what says how long it took."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in ("manifest.jsonl", "report.json", "report.html", "config.yaml", ".lock")
    }
