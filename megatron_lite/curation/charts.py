"""Histograms as SVG text for an HTML page: no ids, no script; colours come from the page's own style sheet.

The page gives `.chart` a text size and colours `.axis`, `.bar-NAME` and `.key-NAME`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 40, 42


@dataclass(frozen=True)
class Bars:
    """A named row of bars, by the label below it."""

    name: str
    heights: Mapping[str, float]
    style: str


def histogram(title: str, labels: Sequence[str], rows: Sequence[Bars], unit: str) -> str:
    """An SVG of bars side by side over the labels; each bar's title says its height in `unit`."""
    highest = max((height for row in rows for height in row.heights.values()), default=0) or 1
    slot = (WIDTH - LEFT - RIGHT) / max(len(labels), 1)
    bar = 0.8 * slot / max(len(rows), 1)
    base = HEIGHT - BOTTOM
    parts = [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        *_legend(rows),
        f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>',
    ]
    for column, label in enumerate(labels):
        middle = LEFT + (column + 0.5) * slot
        parts.append(f'<text x="{middle:.1f}" y="{base + 18}" text-anchor="middle">{escape(label)}</text>')
        for number, row in enumerate(rows):
            height = row.heights.get(label, 0)
            tall = (base - TOP) * height / highest
            x = middle + (number - len(rows) / 2) * bar
            place = f'x="{x:.1f}" y="{base - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}"'
            parts.append(
                f'<rect class="bar-{row.style}" {place}>'
                f"<title>{escape(label)}: {height:,.0f} {escape(unit)} ({escape(row.name)})</title></rect>"
            )
    return "\n".join([*parts, "</svg>"])


def _legend(rows: Sequence[Bars]) -> list[str]:
    parts, x = [], LEFT
    for row in rows:
        parts.append(f'<rect class="bar-{row.style}" x="{x}" y="6" width="14" height="14"/>')
        parts.append(f'<text class="key" x="{x + 21}" y="18">{escape(row.name)}</text>')
        x += 50 + 8 * len(row.name)  # as wide as the widest of the usual fonts
    return parts
