"""How fast the rules are that look for languages, listed things and evaluation items, beside other ways to do the same.

python tools/benchmark/compare_lists.py [--megabytes 10] [--no-peers]

Rates are megabytes of UTF-8 text in a second of one core's time (CPU, so that a busy machine changes little; the best
of three), over the documents of real_text.py. The evaluation set that text is held against is made of other documents.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import peers
import phonenumbers
from real_text import first_megabytes, megabytes_of, real_texts

from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules.bad_words import SHIPPED, BadWords, read_list
from megatron_lite.curation.rules.decontamination import Decontamination
from megatron_lite.curation.rules.evaluation_ngrams import build_table
from megatron_lite.curation.rules.fasttext_model import identification_model, load_model, predict
from megatron_lite.curation.rules.language import Language
from megatron_lite.curation.rules.licence_header import LicenceHeader
from megatron_lite.curation.rules.pii import Pii, scanner
from megatron_lite.curation.rules.rule import Rule
from megatron_lite.curation.rules.toxicity import Toxicity
from megatron_lite.curation.rules.urls import Urls

ITEMS, ITEM_WORDS = 20_000, 60
LISTED = 1_000_000  # domains
PEER_MEGABYTES = 3
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.formatters import PIIFormatter
texts, pii = json.load(open(sys.argv[1])), PIIFormatter()
started = time.process_time()
for text in texts:
    pii.format(text)
print(time.process_time() - started)
"""


def rate(texts: Sequence[str], use: Callable[[str], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        started = time.process_time()
        for text in texts:
            use(text)
        times.append(time.process_time() - started)
    return megabytes_of(texts) / min(times)


def show(name: str, rate: float, more: str = "") -> None:
    print(f"  {name:<44}{rate:8.1f}   {more}", flush=True)


def show_rule(rule: Rule, texts: Sequence[str]) -> None:
    documents = [Document(str(i), text, "real", language="en") for i, text in enumerate(texts)]
    dropped = sum(rule(document) is not None for document in documents)
    edited = sum(document.text is not text for document, text in zip(documents, texts, strict=True))
    speed = rate(texts, lambda text: rule(Document("0", text, "real", language="en")))
    show(f"rule {rule.name}", speed, f"{dropped} dropped, {edited} edited of {len(texts)}")


def decontamination(folder: Path, others: Sequence[str]) -> Decontamination:
    """Against items cut from other documents."""
    rng = random.Random(0)
    words = [text.split() for text in others if len(text) > 1000]
    items = []
    for _ in range(ITEMS):
        chosen = rng.choice(words)
        begin = rng.randrange(max(1, len(chosen) - ITEM_WORDS))
        items.append(" ".join(chosen[begin : begin + ITEM_WORDS]))
    (folder / "items.txt").write_text("\n".join(items), encoding="utf-8")
    started = time.process_time()
    built = build_table({"items": [folder / "items.txt"]}, folder / "table")["items"]
    seconds = time.process_time() - started
    show("table of evaluation items", megabytes_of(items) / seconds, f"{built.items:,} items, {built.ngrams:,} n-grams")
    return Decontamination(str(folder / "table"))


def show_urls(folder: Path) -> None:
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) + ".example" for _ in range(LISTED)]
    (folder / "domains").write_text("\n".join(names), encoding="utf-8")
    rule = Urls(blocked=(str(folder / "domains"),))
    started = time.process_time()
    rule(Document("0", "", "real", url="http://first.example/"))
    loading = time.process_time() - started
    pages = [
        Document("0", "", "real", url=f"https://www.{name}.org/a/page/{i}.html") for i, name in enumerate(names[:20000])
    ]
    started = time.process_time()
    for page in pages:
        rule(page)
    seconds = (time.process_time() - started) / len(pages)
    print(
        f"  rule urls: {seconds * 1e6:.1f} us an address, a list of {LISTED:,} domains read in {loading:.2f} s",
        flush=True,
    )


def c4_pattern() -> re.Pattern[str]:
    words = "|".join(re.escape(word) for word in read_list(SHIPPED / "en.txt"))
    return re.compile(rf"(?:\W|^)({words})(?:\W|$)")


def match_phones(text: str) -> None:
    for _ in phonenumbers.PhoneNumberMatcher(text, "US"):
        pass


def compare_peers(texts: Sequence[str]) -> None:
    print(f"\nOther ways, over {PEER_MEGABYTES} MB")
    few, pattern = first_megabytes(texts, PEER_MEGABYTES), c4_pattern()
    model = load_model(identification_model())
    show("language by fasttext-predict, one line", rate(few, lambda text: predict(model, text), 1))
    show("bad words by C4's regular expression", rate(few, lambda text: pattern.search(text.lower()), 1))
    show("phone numbers by phonenumbers' matcher", rate(first_megabytes(few, 0.5), match_phones, 1))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(few, file)
        file.flush()
        seconds = float(peers.run_with_peer("datatrove", ["-c", PEER, file.name]).split()[-1])
    show("e-mail and IP by datatrove's PIIFormatter", megabytes_of(few) / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    texts = list(real_texts())
    chosen = first_megabytes(texts, options.megabytes)
    print(f"MB/s on one core over {megabytes_of(chosen):.1f} MB in {len(chosen)} documents")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show("scan for personal data and keys alone", rate(chosen, scanner().find))
        others = first_megabytes(texts[len(chosen) :], options.megabytes)
        rules = [Language(), BadWords(), Toxicity(), Pii(), LicenceHeader(), decontamination(folder, others)]
        for rule in rules:
            show_rule(rule, chosen)
        show_urls(folder)
    if not options.no_peers:
        compare_peers(chosen)


if __name__ == "__main__":
    main()
