"""Of equal paragraphs, or lines, the first by (shard, row, place) stays, if they are long and frequent enough."""

import re
from collections import Counter

import numpy as np
import pytest
from support.deduplication import deduplicate, dropped

from megatron_lite.curation.dedup.paragraphs import LINES, PARAGRAPHS, Units
from megatron_lite.curation.words import split_reference

SENTENCES = [
    "Home | About us | Contact page",
    "home, about us; contact page!",
    "All rights reserved by the authors.",
    "}",
    "Yes, it is.",
    "A line of its own words, number #",
]


def words_of(text):
    return tuple(token.lower() for token in split_reference(text) if re.fullmatch(r"\w.*", token))


def split_units(text, unit):
    """Pieces of the text, and which of them are units: lines that are not blank, or paragraphs with what follows."""
    lines = text.splitlines(keepends=True)
    pieces = []
    for number, line in enumerate(lines):
        starts = bool(line.strip()) and (unit == "line" or number == 0 or not lines[number - 1].strip())
        if starts or not pieces or (unit == "line" and pieces[-1][1]):
            pieces.append([line, starts])
        else:
            pieces[-1][0] += line
    return pieces


def expected_texts(shards, unit, comparison, minimum_count, minimum_words, old):
    key = words_of if comparison == "words" else str.rstrip
    total = Counter()
    for text in (text for texts in shards for text in texts):
        total.update(key(piece) for piece, is_unit in split_units(text, unit) if is_unit)
    seen, result, removed = set(), [], 0
    for s, texts in enumerate(shards):
        for text in texts:
            kept = ""
            for piece, is_unit in split_units(text, unit):
                known = is_unit and len(words_of(piece)) >= minimum_words and total[key(piece)] >= minimum_count
                if known and key(piece) in seen:
                    removed += s >= old
                else:
                    kept += piece
                if known:
                    seen.add(key(piece))
            if s >= old:
                result.append(kept)
    return result, removed


def random_text(generator):
    lines = [SENTENCES[i].replace("#", str(generator.integers(20))) for i in generator.integers(len(SENTENCES), size=8)]
    ends = generator.choice(["\n", "\n", "\n\n", "  \n \n", "\n\n\n"], len(lines))
    text = "".join(line + end for line, end in zip(lines, ends, strict=True))
    return "\n" * generator.integers(2) + (text if generator.integers(2) else text.rstrip())


@pytest.mark.parametrize("unit", ["paragraph", "line"])
@pytest.mark.parametrize("comparison", ["words", "exact"])
@pytest.mark.parametrize(("minimum_count", "minimum_words", "old"), [(2, 3, 0), (4, 1, 0), (2, 3, 1), (3, 0, 2)])
def test_copies_go_and_the_rest_stays_byte_for_byte(tmp_path, unit, comparison, minimum_count, minimum_words, old):
    generator = np.random.default_rng(minimum_count)
    shards = [[random_text(generator) for _ in range(size)] for size in (7, 0, 12, 5)]
    options = Units(unit, minimum_count, minimum_words, comparison)
    counts = Counter()
    judged = deduplicate(tmp_path, options, shards, old, counts=counts)
    expected, removed = expected_texts(shards, unit, comparison, minimum_count, minimum_words, old)
    originals = [text for texts in shards[old:] for text in texts]
    emptied = [drop is not None for _, drop in judged]
    assert emptied == [
        not text.strip() and text != original for text, original in zip(expected, originals, strict=True)
    ]
    # A dropped document is shown as it was.
    assert [document.text for document, _ in judged] == [
        original if empty else text for text, original, empty in zip(expected, originals, emptied, strict=True)
    ]
    assert counts[f"{unit}s_removed"] == removed > 0


def test_a_document_without_anything_new_is_dropped_with_that_reason(tmp_path):
    text = "First paragraph of words.\n\nSecond paragraph of words.\n"
    judged = deduplicate(tmp_path, PARAGRAPHS, [[text], [text]])
    assert dropped(judged) == {"test/1/0": "all 2 paragraphs occur earlier"}
    assert [drop.rule for _, drop in judged if drop] == ["paragraphs.empty"]


def test_lines_go_from_their_seventh_occurrence_in_the_corpus_on_not_before(tmp_path):
    line, other = "Subscribe to our newsletter today\n", "Something else here\n"
    for copies in (6, 7):
        shards = [[line + other], [line * (copies - 1)]]
        judged = deduplicate(tmp_path / str(copies), LINES, shards)
        assert len(dropped(judged)) == (copies == 7)
