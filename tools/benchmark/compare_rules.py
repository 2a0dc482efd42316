"""Our heuristic rules beside datatrove's: verdicts rule by rule, and the speed of the chain.

python tools/benchmark/compare_rules.py [--input F.jsonl ...] [--megabytes N] [--timed-megabytes N]

The texts are those of real_text.py, or of the files given. Both sides split words and sentences as this project does;
what remains different is counted by what explains it (judge_beside_datatrove.py takes differences of definition away
one by one). Rates are MB of UTF-8 text in a second of one core's time, for Gopher's repetition and quality rules, C4's
and FineWeb's in this order. datatrove is installed into runs/peers where it is missing.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import peers
from real_text import first_megabytes, real_texts

JUDGE = Path(__file__).with_name("judge_beside_datatrove.py")


def judge(mode: str, texts: Sequence[str]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        return json.loads(peers.run_with_peer("datatrove", [str(JUDGE), mode, file.name]))


def read_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def show_verdicts(results: dict[str, Any]) -> None:
    print("rule                 documents    equal    explained  unexplained")
    for name, found in results.items():
        explained, unexplained = sum(found["explained"].values()), len(found["unexplained"])
        equal = found["documents"] - explained - unexplained
        share = equal / found["documents"]
        print(f"{name:<20} {found['documents']:>9,}  {share:>8.3%} {explained:>9,} {unexplained:>12,}")
        for explanation, count in found["explained"].items():
            print(f"    {count:,}: {explanation}")
        for number, ours, theirs in found["unexplained"][:10]:
            print(f"    document {number}: here {ours}, there {theirs}")
        print(
            "    "
            + ", ".join(f"{reason.split('.')[-1]} {count:,}" for reason, count in sorted(found["reasons"].items()))
        )


def show_rate(name: str, texts: Sequence[str], mode: str) -> None:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found = judge(mode, texts)
    ours, theirs = megabytes / found["ours"], megabytes / found["theirs"]
    print(f"{name}, {megabytes:.1f} MB:")
    print(f"    here {ours:.1f} MB/s, datatrove {theirs:.2f} MB/s: {ours / theirs:.1f} times")
    for rule, count in found.get("flipped", {}).items():
        print(f"    {rule}: {count / len(texts):.1%} of {len(texts):,} verdicts turned by the splitter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, nargs="+", metavar="F.jsonl", help="files of JSON lines with a text")
    parser.add_argument("--megabytes", type=float, default=1e6, metavar="N", help="of text to judge (all)")
    parser.add_argument("--timed-megabytes", type=float, default=10, metavar="N", help="of text to time (10)")
    arguments = parser.parse_args()
    texts = chain.from_iterable(map(read_texts, arguments.input)) if arguments.input else real_texts()
    chosen = first_megabytes(texts, arguments.megabytes)
    print(f"{len(chosen):,} documents, {sum(len(text.encode()) for text in chosen) / 1e6:.1f} MB")
    timed = first_megabytes(iter(chosen), arguments.timed_megabytes)
    show_rate("chain, our splitter on both sides", timed, "seconds")
    show_rate("chain, datatrove as it comes (spaCy)", first_megabytes(iter(timed), 2), "shipped")
    show_verdicts(judge("verdicts", chosen))


if __name__ == "__main__":
    main()
