"""Line charts as SVG text for an HTML page: no ids, no script; colours come from the page's own style sheet.

The page gives `.chart` a text size and colours `.grid`, `.axis`, `.line-NAME`, `.dot-NAME`, `.key-NAME` and `.level`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

Point = tuple[float, float]

# More points than pixels only make the page heavy.
MAX_POINTS = 600


@dataclass(frozen=True)
class Series:
    """A named line. `style` is the NAME of its classes; a series with `dots` marks each of its points."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, its label written on it."""

    name: str
    value: float


@dataclass(frozen=True)
class Frame:
    """Where a chart's plane lies in the picture, in pixels, and which part of the numbers it shows."""

    x_range: Point
    y_range: Point
    width: int = 760
    height: int = 300
    left: int = 56
    right: int = 20
    top: int = 34
    bottom: int = 46

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    level: Level | None = None,
    from_zero: bool = False,
    size: tuple[int, int] = (760, 300),
) -> str:
    """An SVG of the series over one pair of axes. All points must be finite, and there must be one.

    Long series are drawn as means over equal stretches; `from_zero` takes 0 into the vertical axis.
    """
    drawn = [Series(s.name, thin(s.points), s.style, s.dots) for s in series]
    points = [point for one in drawn for point in one.points]
    heights = [y for _, y in points] + ([level.value] if level else []) + ([0.0] if from_zero else [])
    x_range = _widened(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = ticks(*_widened(min(heights), max(heights)), count=max(3, size[1] // 60))
    places = _key_places(drawn, size[0])
    frame = Frame(x_range, (y_ticks[0], y_ticks[-1]), *size, top=Frame.top + places[-1][1] - places[0][1])
    parts = [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img">',
        f"<title>{escape(title)}</title>",
        *_axes(frame, y_ticks, x_label),
        *(_level(level, frame) if level else ()),
        *(part for one in drawn for part in _line(one, frame)),
        *_legend(title, drawn, places, size[0]),
    ]
    return "\n".join([*parts, "</svg>"])


def thin(points: Sequence[Point]) -> list[Point]:
    """The points, or at most MAX_POINTS means of equally many neighbours; the last point always stays."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = ceil(len(points) / (MAX_POINTS - 1))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps apart in 1, 2 or 5 times 10^n."""
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def format_number(value: float) -> str:
    """Short, as on an axis: 1,500 or 20k or 0.0003 or 3e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        suffix, unit = next((s, u) for s, u in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if abs(value) >= u)
        return f"{value / unit:.4g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _widened(low: float, high: float) -> Point:
    """A range that is not empty, so that something constant is drawn in its middle."""
    margin = abs(low) * 0.1 or 1.0
    return (low, high) if high - low > 1e-12 * max(abs(low), abs(high)) else (low - margin, high + margin)


def _axes(frame: Frame, y_ticks: Sequence[float], x_label: str) -> list[str]:
    right, base = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{frame.left - 9}" y="{y + 4:.1f}" text-anchor="end">{format_number(value)}</text>')
    parts.append(f'<path class="axis" d="M{frame.left} {base}H{right}"/>')
    low, high = frame.x_range
    for value in ticks(low, high, count=max(4, frame.width // 110)):
        if low <= value <= high:
            x = frame.x(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {base}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 19}" text-anchor="middle">{format_number(value)}</text>')
    middle = (frame.left + right) / 2
    return [*parts, f'<text x="{middle}" y="{frame.height - 8}" text-anchor="middle">{escape(x_label)}</text>']


def _level(level: Level, frame: Frame) -> list[str]:
    y, right = frame.y(level.value), frame.width - frame.right
    label = f"{escape(level.name)} {level.value:.3f}"
    return [
        f'<path class="level" d="M{frame.left} {y:.1f}H{right}"/>',
        f'<text class="level-label" x="{right}" y="{y - 6:.1f}" text-anchor="end">{label}</text>',
    ]


def _line(series: Series, frame: Frame) -> list[str]:
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in series.points)
    parts = [f'<path class="line-{series.style}" d="M{path}"/>'] if len(series.points) > 1 else []
    # A single point makes no line.
    marked = series.points if series.dots or len(series.points) == 1 else ()
    for x, y in marked:
        dot = f'<circle class="dot-{series.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
        parts.append(f"{dot}<title>{escape(series.name)} at {x:g}: {y:.5g}</title></circle>")
    return parts


def _key_places(series: Sequence[Series], width: int) -> list[tuple[int, int]]:
    """Where the key of each begins, in as many lines as they take."""
    places, x, y = [], Frame.left, 16
    for one in series:
        length = 27 + 8 * len(_fitting(one.name, width))  # as wide as the widest of the usual fonts
        if x > Frame.left and x + length > width:
            x, y = Frame.left, y + 18
        places.append((x, y))
        x += length + 27
    return places


def _fitting(name: str, width: int) -> str:
    """Of a name that is too long for a line its end."""
    letters = (width - Frame.left - 27) // 9
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _legend(title: str, series: Sequence[Series], places: Sequence[tuple[int, int]], width: int) -> list[str]:
    """The title where there is one line, a key for each where there are several."""
    if len(series) == 1:
        return [f'<text class="chart-title" x="{Frame.left}" y="16">{escape(title)}</text>']
    parts = []
    for one, (x, y) in zip(series, places, strict=True):
        parts.append(f'<path class="line-{one.style}" d="M{x} {y - 4}h20"/>')
        if one.dots:
            parts.append(f'<circle class="dot-{one.style}" cx="{x + 10}" cy="{y - 4}" r="3.5"/>')
        parts.append(f'<text class="key" x="{x + 27}" y="{y}">{escape(_fitting(one.name, width))}</text>')
    return parts
