"""Clusters of near duplicates: those of an exact Jaccard oracle, and the document of each that is kept."""

import time
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from support.deduplication import components, deduplicate, dropped, run_stages, write_shards

from megatron_lite.curation import _dedup
from megatron_lite.curation.dedup import fuzzy
from megatron_lite.curation.dedup.fuzzy import Fuzzy
from megatron_lite.curation.dedup.runs import Range
from megatron_lite.curation.words import split_reference
from megatron_lite.errors import UsageError


def shingles(text):
    tokens = split_reference(text.lower())
    return {tuple(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, min(len(tokens), 1)))}


def jaccard(a, b):
    common = len(a & b)
    return common / (len(a) + len(b) - common) if a or b else 0.0


def edit(generator, text, edits):
    words = text.split()
    for at in generator.integers(len(words), size=edits):
        words[at] = f"new{generator.integers(10**6)}"
    return " ".join(words)


def planted_corpus(generator, families):
    """Documents of 100 to 300 frequent and rare words, each with near copies of few edits and far ones of many."""
    texts = []
    for _ in range(families):
        length = int(generator.integers(100, 300))
        words = [f"word{int(rank)}" for rank in generator.zipf(1.3, length) % 5000]
        original = " ".join(words)
        texts.append(original)
        texts += [edit(generator, original, int(generator.integers(0, 3))) for _ in range(generator.integers(4))]
        texts += [edit(generator, original, length // 4) for _ in range(generator.integers(2))]
        texts += [" ".join(words[: length // 3])] * int(generator.integers(2))
    return [texts[i] for i in generator.permutation(len(texts))]


def in_shards(texts):
    cuts = [0, len(texts) // 5, len(texts) // 5, len(texts) // 2, len(texts)]
    return [texts[begin:end] for begin, end in pairwise(cuts)]


def ids_of(shards):
    return [f"test/{s}/{r}" for s, texts in enumerate(shards) for r in range(len(texts))]


def expected_drops(shards, roots):
    """Of each cluster all but the first are dropped."""
    ids = ids_of(shards)
    return {ids[i]: f"near to {ids[root]}" for i, root in enumerate(roots) if root != i}


@pytest.mark.parametrize(("seed", "ranges"), [(0, 1), (1, 5)])
def test_clusters_are_the_components_of_documents_that_share_a_band(tmp_path, seed, ranges):
    texts = planted_corpus(np.random.default_rng(seed), 40)
    hashes, _ = _dedup.band_hashes(texts, 1)
    pairs = [(a, b) for a, b in combinations(range(len(texts)), 2) if (hashes[a] == hashes[b]).any()]
    judged = deduplicate(tmp_path, Fuzzy(), in_shards(texts), ranges=ranges)
    assert dropped(judged) == expected_drops(in_shards(texts), components(len(texts), pairs))


@pytest.mark.parametrize(("seed", "ranges"), [(2, 1), (3, 4)])
def test_verified_clusters_are_the_components_of_candidates_whose_exact_similarity_suffices(tmp_path, seed, ranges):
    texts = planted_corpus(np.random.default_rng(seed), 40)
    sets = list(map(shingles, texts))
    hashes, _ = _dedup.band_hashes(texts, 1)
    candidates = [(a, b) for a, b in combinations(range(len(texts)), 2) if (hashes[a] == hashes[b]).any()]
    pairs = [(a, b) for a, b in candidates if jaccard(sets[a], sets[b]) >= 0.8]
    assert 0 < len(pairs) < len(candidates)
    judged = deduplicate(tmp_path, Fuzzy(verify=0.8), in_shards(texts), ranges=ranges)
    assert dropped(judged) == expected_drops(in_shards(texts), components(len(texts), pairs))


def compare_with_oracle(folder, seed, families, threshold):
    """(recall, precision) of the pairs that share a cluster, against those of all pairs' exact similarity."""
    texts = planted_corpus(np.random.default_rng(seed), families)
    sets = list(map(shingles, texts))
    similar = [(a, b) for a, b in combinations(range(len(texts)), 2) if jaccard(sets[a], sets[b]) >= threshold]
    oracle = components(len(texts), similar)
    shards = in_shards(texts)
    index = {name: i for i, name in enumerate(ids_of(shards))}
    roots = list(range(len(texts)))
    options = Fuzzy(verify=threshold)
    for name, detail in dropped(deduplicate(folder, options, shards)).items():
        roots[index[name]] = index[detail.removeprefix("near to ")]
    together = {label: {(a, b) for a, b in combinations(range(len(texts)), 2) if labels[a] == labels[b]}
                for label, labels in (("found", roots), ("true", oracle))}  # fmt: skip
    common = len(together["found"] & together["true"])
    recall, precision = common / len(together["true"]), common / len(together["found"])
    print(
        f"{len(texts)} documents, {len(similar)} pairs of {threshold}: recall {recall:.4f}, precision {precision:.4f}"
    )
    return recall, precision


def test_clusters_equal_those_of_an_exact_jaccard_oracle(tmp_path):
    """Of pairs above 0.85 one in 85 or fewer escapes all bands: (1 - 0.85^8)^14."""
    recall, precision = compare_with_oracle(tmp_path, 4, 60, threshold=0.85)
    assert precision == 1
    assert recall > 0.97


@pytest.mark.nightly
def test_clusters_of_thousands_of_documents_equal_those_of_an_exact_jaccard_oracle(tmp_path):
    recall, precision = compare_with_oracle(tmp_path, 5, 600, threshold=0.85)
    assert precision == 1
    assert recall > 0.99


COMMON = " ".join(f"w{i}" for i in range(100))


def test_the_first_or_the_longest_of_a_cluster_stays_and_the_first_of_equal_lengths(tmp_path):
    shards = [["other words here are just enough", COMMON], [COMMON + " and more", COMMON + " and mire"]]
    first = deduplicate(tmp_path / "first", Fuzzy("first"), shards)
    assert dropped(first) == {"test/1/0": "near to test/0/1", "test/1/1": "near to test/0/1"}
    longest = deduplicate(tmp_path / "longest", Fuzzy("longest"), shards)
    assert dropped(longest) == {"test/0/1": "near to test/1/0", "test/1/1": "near to test/1/0"}


@pytest.mark.parametrize("keep", ["first", "longest"])
@pytest.mark.parametrize("verify", [None, 0.5])
def test_an_old_document_wins_over_longer_ones_and_is_not_judged_again(tmp_path, keep, verify):
    shards = [[COMMON, COMMON], [COMMON + " and more"], [COMMON + " and much more", "entirely new words in this one"]]
    judged = deduplicate(tmp_path, Fuzzy(keep, verify), shards, old=1)
    assert len(judged) == 3
    assert dropped(judged) == {"test/1/0": "near to test/0/0", "test/2/0": "near to test/0/0"}


def test_documents_of_fewer_than_five_words_are_near_to_the_same_words_only(tmp_path):
    shards = [
        ["one two three four", "one two three", "", "..."],
        ["One  TWO three four", "", " \n", "one two three five"],
    ]
    judged = deduplicate(tmp_path, Fuzzy(), shards)
    assert dropped(judged) == {"test/1/0": "near to test/0/0"}


def test_a_chain_of_neighbours_is_one_cluster(tmp_path):
    """Each shares 14/15 of its words with the next, the first and the last nothing."""
    chain = [" ".join(f"w{i}" for i in range(begin, begin + 300)) for begin in range(0, 320, 10)]
    assert not shingles(chain[0]) & shingles(chain[-1])
    judged = deduplicate(tmp_path, Fuzzy(verify=0.9), in_shards(chain))
    assert set(dropped(judged).values()) == {"near to test/0/0"}
    assert len(dropped(judged)) == len(chain) - 1


def test_copies_by_the_ten_thousand_are_verified_without_asking_about_each_pair():
    """All 2 x 10^8 pairs of 14 bands would take a minute."""
    copies, shingles_each = 20_000, 50
    sets = np.tile(np.arange(shingles_each, dtype=np.uint64), copies)
    starts = np.arange(0, len(sets) + 1, shingles_each)
    started = time.process_time()
    roots = _dedup.verified_roots(np.ones((copies, 14), np.uint64), starts, sets, 0.9)
    assert not roots.any()
    assert time.process_time() - started < 5


def test_cluster_sizes_are_counted(tmp_path):
    shards = [[COMMON, COMMON, "alone " * 9], [COMMON, *(["another text of seven words is this"] * 2)]]
    rows = run_stages(tmp_path, Fuzzy(), write_shards(tmp_path / "shards", shards))
    sizes = sum((Counter(row.counts["cluster_sizes"]) for row in rows["choose"]), Counter())
    assert sizes == {"2": 1, "3": 1}


@pytest.mark.parametrize("verify", [None, 0.8])
def test_a_document_that_stays_for_others_says_how_many_there_were(tmp_path, verify):
    shards = [[COMMON, "alone " * 9, COMMON], [COMMON, *(["another text of seven words is this"] * 2)]]
    stay = [document for document, drop in deduplicate(tmp_path, Fuzzy(verify=verify), shards) if drop is None]
    sizes = {document.id: document.metadata.get("cluster_size") for document in stay}
    assert sizes == {"test/0/0": 3, "test/0/1": None, "test/1/1": 2}


def test_a_document_that_an_old_corpus_has_is_not_kept_for_others(tmp_path):
    shards = [[COMMON], [COMMON, "another text of seven words is this", COMMON]]
    ((document, _),) = [judged for judged in deduplicate(tmp_path, Fuzzy(), shards, old=1) if judged[1] is None]
    assert document.id == "test/1/1" and "cluster_size" not in document.metadata


def test_runs_of_other_permutations_are_refused(tmp_path):
    (shard,) = write_shards(tmp_path / "shards", [[COMMON]])
    fuzzy.scan(Fuzzy(seed=2), shard, tmp_path / "run")
    with pytest.raises(UsageError, match=r'"seed": 2.*, where .*"seed": 1'):
        fuzzy.pair(Fuzzy(seed=1), [tmp_path / "run"], 0, Range(0, 1), tmp_path / "edges")
