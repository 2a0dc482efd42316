"""Clusters of near duplicates, and which of their documents stays."""

from collections import Counter
from typing import Literal

import numpy as np

from megatron_lite.curation.dedup.runs import Columns

Keep = Literal["first", "longest"]


def choose_kept(members: Columns, keep: Keep, old: int) -> tuple[Columns, dict[str, int]]:
    """Who goes for whom, and how many clusters there are of each size (its number as a string, as JSON has it).

    `members` has a row for each document of a cluster, in order of (shard, row): columns `root` (any number that
    tells clusters apart), `shard`, `row`, `length`. The result has a row for each of them that is new: columns `shard`,
    `row`, `kept_shard`, `kept_row` (its own, if it stays) and `size` of the cluster.
    A cluster that has documents of the old corpus, shards below `old`, keeps the first of them, and only new ones go.
    """
    _, cluster, sizes = np.unique(members["root"], return_inverse=True, return_counts=True)
    length = members["length"].astype(np.int64)
    # Sorted by cluster, best first; lexsort is stable, so the first document comes first among equals.
    is_new = members["shard"] >= old
    order = np.lexsort((np.zeros_like(length) if keep == "first" else np.where(is_new, -length, 0), is_new, cluster))
    begins = np.cumsum(sizes) - sizes
    kept = order[begins][cluster]
    new = np.flatnonzero(is_new & (sizes[cluster] > 1))  # one that no pair was verified of is alone
    columns = {
        "shard": members["shard"][new],
        "row": members["row"][new],
        "kept_shard": members["shard"][kept[new]],
        "kept_row": members["row"][kept[new]],
        "size": sizes[cluster[new]],
    }
    histogram = Counter(sizes[sizes > 1].tolist())
    return columns, {str(size): histogram[size] for size in sorted(histogram)}
