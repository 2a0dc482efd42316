"""Deduplication of real text, against other projects' code and plain Python. They install peers and fetch packages."""

import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import peers
import pytest
import real_text
from support.deduplication import deduplicate, dropped, repeated_words

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup.exact import Exact
from megatron_lite.curation.dedup.substring import Substring
from megatron_lite.curation.words import split_reference

pytestmark = pytest.mark.nightly


def first_texts(megabytes):
    held = 0
    for text in real_text.real_texts():
        if held > megabytes * 1e6:
            return
        held += len(text.encode())
        yield text


DIVSUFSORT = """
import sys, numpy, pydivsufsort
folder = sys.argv[1]
tokens = numpy.load(f"{folder}/tokens.npy")
suffixes = pydivsufsort.divsufsort(tokens)
numpy.save(f"{folder}/suffixes.npy", suffixes)
numpy.save(f"{folder}/common.npy", pydivsufsort.kasai(tokens, suffixes))
"""


def test_passages_of_a_real_corpus_are_those_of_libdivsufsort(tmp_path):
    def suffixes_of(tokens):
        np.save(tmp_path / "tokens.npy", tokens)
        peers.run_with_peer("pydivsufsort", ["-c", DIVSUFSORT, str(tmp_path)])
        # There it is how much a suffix has in common with the one after it.
        return np.load(tmp_path / "suffixes.npy").astype(np.int64), np.roll(np.load(tmp_path / "common.npy"), 1)

    texts = list(first_texts(20))
    documents = list(map(split_reference, texts))
    gone = repeated_words(documents, 50, suffixes_of)
    shards = [texts[i : i + 300] for i in range(0, len(texts), 300)]
    counts = Counter()
    judged = deduplicate(tmp_path, Substring(), shards, counts=counts)
    assert counts["words_removed"] == sum(int(mask.sum()) for mask in gone) > 0
    for (document, drop), tokens, mask in zip(judged, documents, gone, strict=True):
        assert (drop is not None) == bool(len(mask) and mask.all())
        if drop is None:
            kept = [token for token, out in zip(tokens, mask.tolist(), strict=True) if not out]
            assert split_reference(document.text) == kept
    words = sum(map(len, documents))
    print(f"{len(texts)} documents, {words:,} words, {counts['words_removed']:,} of them removed")


def test_the_linux_documentations_copies_are_dropped_and_nothing_else(tmp_path):
    """The package holds each page twice, plain and .gz. Which pairs are equal is told by their bytes."""
    files = real_text.package_files("linux-docs")
    assert files, "the package linux-doc could not be had: this proof needs apt and its archive"
    contents = {path: text for path in files if (text := real_text.read_text(path))}
    texts = list(contents.values())
    shards = [texts[i : i + 500] for i in range(0, len(texts), 500)]
    judged = deduplicate(tmp_path, Exact("text"), shards)
    assert [not drop for _, drop in judged] == [i == texts.index(text) for i, text in enumerate(texts)]
    plain = [text for path, text in contents.items() if path.suffix == ".txt"]
    packed = [text for path, text in contents.items() if path.suffix == ".gz"]
    pairs = len(set(plain) & set(packed))
    print(f"{len(plain)} plain pages, {len(packed)} packed, {pairs} texts in both, {len(dropped(judged))} dropped")
    assert len(dropped(judged)) == len(texts) - len(set(texts)) >= pairs > 3000


ESTIMATES = """
import json, re, sys
sys.path.insert(0, sys.argv[2])
from sign_with_peer import shingles
pairs = json.load(open(sys.argv[1]))
if sys.argv[3] == "rensa":
    from rensa import RMinHash
    def sign(text):
        signature = RMinHash(num_perm=256, seed=7)
        signature.update(shingles(text))
        return signature
else:
    from datasketch import MinHash
    def sign(text):
        signature = MinHash(num_perm=256)
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        return signature
print(json.dumps([sign(a).jaccard(sign(b)) for a, b in pairs]))
"""


@pytest.mark.parametrize("name", ["rensa", "datasketch"])
def test_other_projects_estimate_the_similarities_that_decide_our_bands(tmp_path, name):
    """Pages and copies of them without some of their lines: exact similarities here, estimates there, bands found."""
    generator = np.random.default_rng(0)
    texts = [text for text in islice(first_texts(20), 2000) if 2000 < len(text) < 20_000 and text.isascii()][:400]
    pairs = [(text, without_lines(generator, text)) for text in texts]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    code = ["-c", ESTIMATES, str(tmp_path / "pairs.json"), str(peers.FOLDER.parents[1] / "tools" / "benchmark"), name]
    estimates = np.array(json.loads(peers.run_with_peer(name, code)))
    exact = np.array([similarity(_dedup.shingles(a), _dedup.shingles(b)) for a, b in pairs])
    deviation = np.sqrt(exact * (1 - exact) / 256)
    assert abs((estimates - exact).mean()) < 4 * math.sqrt((deviation**2).sum()) / len(pairs)
    assert np.abs(estimates - exact).max() < 5 * deviation.max()
    # How many pairs share a band is a sum of independent trials whose chances the estimates tell about.
    first, second = (_dedup.band_hashes([pair[side] for pair in pairs], 3)[0] for side in (0, 1))
    found = int((first == second).any(1).sum())
    chance = 1 - (1 - exact**8) ** 14
    print(f"{name}: {len(pairs)} pairs, {found} share a band, {chance.sum():.1f} expected")
    assert abs(found - chance.sum()) < 4 * math.sqrt((chance * (1 - chance)).sum())


def without_lines(generator, text):
    lines = text.split("\n")
    kept = generator.random(len(lines)) > generator.uniform(0, 0.3)
    return "\n".join(line for line, keep in zip(lines, kept, strict=True) if keep)


def similarity(a, b):
    common = len(np.intersect1d(a, b))
    return common / (len(a) + len(b) - common)
