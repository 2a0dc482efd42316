"""Deduplication at every granularity, in steps over shard files; memory is bounded by a shard or a range of hashes.

    scan    a shard -> a run: its hashes, sorted (runs.py)
    find    a range of the hashes of all runs -> findings: what occurs elsewhere, sorted by shard
    judge   a shard and its findings -> its documents, edited or with the reason why they are dropped

The first occurrence stays: the one of least (shard's number, row in the shard). An old corpus is deduplicated against
by putting its runs before the new ones: its documents come first and win, and are not judged again.

    exact.py       documents of one URL, or of one text
    fuzzy.py       near duplicates: MinHash, locality-sensitive hashing, clusters (clusters.py)
    paragraphs.py  paragraphs and lines
    substring.py   passages of 50 words and more
"""
