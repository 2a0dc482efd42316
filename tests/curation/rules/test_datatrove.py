"""Verdicts equal datatrove's rule by rule, and what differs is explained. Installs datatrove into runs/peers."""

import random

import compare_rules
import pytest
from real_text import real_texts

from megatron_lite.curation.rules.table import TABLE

pytestmark = pytest.mark.nightly

STOP_WORDS = "the be to of and that have with".split()
NUISANCES = [
    *("# ... … € → _ ___ 1234 56 { } • - * ? ! \" ' lorem ipsum javascript".split()),
    *("[1] [23] [edit] [citation needed] privacy policy/use cookies/terms of use".split("/")),
]
ENDS = [".", ".", ".", "!", '"', "'", "...", "…", "", "?", ". [1]", " [2].", "。"]


def made_text(chance: random.Random) -> str:
    """Lines of few or many different words with nuisances, some repeated: most rules are near their thresholds."""
    length = chance.choice([2, 4, 6, 12])
    words = [
        "".join(chance.choices("abcdefgh", k=chance.randint(1, length))) for _ in range(chance.choice([3, 30, 300]))
    ]
    words += chance.sample(STOP_WORDS, chance.randint(0, 3)) * 3
    nuisances = chance.sample(NUISANCES, chance.randint(0, 4))
    rate, ends = chance.choice([0, 0.02, 0.1, 0.3]) * bool(nuisances), chance.sample(ENDS, chance.randint(1, 3))
    start = chance.choice(["", "", "", "- ", "• "])
    lines = []
    for _ in range(chance.randint(1, 30)):
        line = chance.choices(words, k=chance.randint(1, 20))
        line = [chance.choice(nuisances) if chance.random() < rate else word for word in line]
        lines.append(start + " ".join(line) + chance.choice(ends))
        if chance.random() < 0.1:
            lines += chance.choices(lines, k=chance.randint(1, 5))
    return chance.choice(["\n", "\n\n", "\r\n", "\n\n\n"]).join(lines) + chance.choice(["", "\n"])


def made_texts() -> list[str]:
    chance = random.Random(5)
    return ["", "\n", " \t\n", *(made_text(chance) for _ in range(6000)), *["word of the " * 40_000]]


def test_verdicts_equal_datatroves_but_for_what_is_explained() -> None:
    texts = [*compare_rules.first_megabytes(real_texts(), 3), *made_texts()]
    results = compare_rules.judge("verdicts", texts)
    rules = {"gopher_repetition", "gopher_quality", "c4", "fineweb"}
    reached = {reason for found in results.values() for reason in found["reasons"]} - {"kept"}
    assert set(results) == rules
    assert reached == {f"{row.rule}.{row.reason}" for row in TABLE if row.rule in rules and row.reason[0] != "("}
    for name, found in results.items():
        assert found["unexplained"] == [], name
        assert sum(found["explained"].values()) < 0.25 * len(texts), name
