"""Times as bars, one picture."""

from collections.abc import Sequence
from pathlib import Path

from megatron_lite.kernels.benchmarks.table import Row

TITLES = {"measured": "Measured on {}", "roofline": "Bound by published figures of {}: not measured"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Of the rows that have times, which must be of one kind and one device. Quantiles are whiskers."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.median_ms is not None]
    operations = list(dict.fromkeys(row.operation for row in timed))
    makers = list(dict.fromkeys(row.by for row in timed))
    figure = Figure(figsize=(8, 1 + 0.25 * len(timed)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(makers)
    for index, by in enumerate(makers):
        mine = [(row, row.median_ms) for row in timed if row.by == by and row.median_ms is not None]
        places = [operations.index(row.operation) + index * height for row, _ in mine]
        whiskers = [[median - (row.low_ms or median) for row, median in mine],
                    [(row.high_ms or median) - median for row, median in mine]]  # fmt: skip
        axes.barh(places, [median for _, median in mine], height, label=by, xerr=whiskers)
    axes.set(xscale="log", xlabel="milliseconds", title=TITLES[timed[0].kind].format(timed[0].device))
    axes.set_yticks([place + height * (len(makers) - 1) / 2 for place in range(len(operations))], operations)
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path)
