"""How far people who judge the same pairs agree.

Krippendorff's alpha for nominal values ("Computing Krippendorff's Alpha-Reliability", 2011, section C) takes any number
of annotators, each of whom may have left pairs out; for two who judged the same pairs it is near Cohen's kappa, and is
Scott's pi but for a correction where pairs are few. With m values of a pair, and c of them equal to k:

    o_kk = sum over pairs of c (c - 1) / (m - 1)     n_k = sum over pairs of c     n = sum of n_k
    alpha = 1 - (1 - sum of o_kk / n) / (1 - sum of n_k (n_k - 1) / (n (n - 1)))
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """`pairs` that two people or more have judged. `percent` of all twos of judgements of the same pair say the same;
    `alpha` is 1 where all do, 0 where they agree as often as by chance. None: there are none, or all say one thing, of
    which chance would make the same.
    """

    pairs: int
    percent: float | None
    alpha: float | None


def agreement(judged: Iterable[Collection[str]]) -> Agreement:
    """`judged` are what each pair's annotators said."""
    pairs = [Counter(values) for values in judged if len(values) > 1]
    if not pairs:
        return Agreement(0, None, None)
    totals: Counter[str] = Counter()
    twos = equal_twos = 0
    coincidences = 0.0
    for counts in pairs:
        m, equal = counts.total(), sum(c * (c - 1) for c in counts.values())
        totals.update(counts)
        twos += m * (m - 1)
        equal_twos += equal
        coincidences += equal / (m - 1)
    n = totals.total()
    by_chance = n * (n - 1) - sum(n_k * (n_k - 1) for n_k in totals.values())
    alpha = 1 - (n - coincidences) * (n - 1) / by_chance if by_chance else None
    return Agreement(len(pairs), 100 * equal_twos / twos, alpha)
