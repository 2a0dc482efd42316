"""A timeline as text, as an SVG picture and as a Chrome trace."""

from dataclasses import dataclass
from html import escape
from math import floor, log10

from megatron_lite.parallel.pipeline.simulator import Span, Timeline

# Fills with dark text on them read on white and on black; the pairs I, W are shades of the whole backward's hue.
FILL = {"F": "#8ab6f0", "B": "#f2b179", "I": "#f2b179", "W": "#9bd3a0"}
NAME = {"F": "forward", "B": "backward", "I": "backward for input", "W": "backward for weights"}
INK = "#1b1f24"
GREY = "#7d7d7d"  # as far from white as from black: axes and names stand on the page's own background


@dataclass(frozen=True)
class Frame:
    """Where things stand in the picture, in pixels."""

    scale: float  # pixels per unit of time
    numbered: frozenset[str]  # kinds of action whose blocks are wide enough for every number
    left: int = 78
    top: int = 44
    row: int = 30
    gap: int = 6

    def x(self, time: float) -> float:
        return self.left + time * self.scale

    def y(self, stage: int) -> int:
        return self.top + stage * (self.row + self.gap)


def timeline_svg(timeline: Timeline, unit: str = "units of time") -> str:
    """A self-contained SVG: a row for each stage, a block for each action with its microbatch's number, a time axis.

    Readable on a light and on a dark page; safe inside an HTML page (no ids, no style sheet, no script). `unit` names
    the unit of the timeline's times. Actions of further chunks are drawn with a line below the number.
    """
    scale = _scale(timeline)
    frame = Frame(scale, _numbered(timeline, scale))
    stages = len(timeline.spans)
    width = round(frame.x(timeline.makespan)) + 24
    bottom = frame.y(stages)
    height = bottom + 46
    summary = f"{stages} stages, {timeline.makespan:g} {unit}, bubble {timeline.bubble:.1%}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>Pipeline timeline: {escape(summary)}</title>",
        *_legend(timeline, frame),
        *_axis(timeline, frame, bottom, unit),
    ]
    for stage, row in enumerate(timeline.spans):
        middle = frame.y(stage) + frame.row / 2
        track = f'x="{frame.left}" y="{frame.y(stage)}" width="{timeline.makespan * frame.scale:.2f}"'
        parts.append(
            f'<text x="{frame.left - 12}" y="{middle + 4.5}" text-anchor="end" fill="{GREY}">stage {stage}</text>'
        )
        parts.append(f'<rect {track} height="{frame.row}" fill="{GREY}" fill-opacity="0.2"/>')
        parts += [_block(span, frame, stage) for span in row]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _scale(timeline: Timeline) -> float:
    """Pixels per unit: the shortest action gets 24, the whole at most 1600 and at least 600."""
    lengths = [span.end - span.start for row in timeline.spans for span in row if span.end > span.start]
    if not lengths:
        return 1.0
    return min(max(24 / min(lengths), 600 / timeline.makespan), 1600 / timeline.makespan)


def _numbered(timeline: Timeline, scale: float) -> frozenset[str]:
    """The kinds whose every block has room for its number: a row is numbered throughout or not at all."""
    spans = [span for row in timeline.spans for span in row]
    narrow = {s.action.kind for s in spans if (s.end - s.start) * scale < 8 * len(str(s.action.microbatch)) + 3}
    return frozenset(s.action.kind for s in spans) - narrow


def _block(span: Span, frame: Frame, stage: int) -> str:
    action, x, y = span.action, frame.x(span.start), frame.y(stage)
    width = (span.end - span.start) * frame.scale
    inset = min(0.75, width / 8)
    parts = [
        f"<g><title>{action}: {span.start:g} to {span.end:g}</title>",
        f'<rect x="{x + inset:.2f}" y="{y + 1}" width="{width - 2 * inset:.2f}" height="{frame.row - 2}" '
        f'rx="{min(3, width / 6):.2f}" fill="{FILL[action.kind]}"/>',
    ]
    if action.kind in frame.numbered:
        middle, base = x + width / 2, y + frame.row / 2 + 4.5
        text = f'<text x="{middle:.2f}" y="{base}" text-anchor="middle" fill="{INK}">'
        parts.append(f"{text}{action.microbatch}</text>")
        for line in range(action.chunk):
            below = y + frame.row - 4 - 2.5 * line
            parts.append(f'<path d="M{middle - 5:.2f} {below}h10" stroke="{INK}" stroke-width="1.2"/>')
    return "".join(parts) + "</g>"


def _legend(timeline: Timeline, frame: Frame) -> list[str]:
    present = {span.action.kind for row in timeline.spans for span in row}
    parts, x = [], frame.left
    for kind in [kind for kind in NAME if kind in present]:
        parts.append(f'<rect x="{x}" y="14" width="14" height="14" rx="3" fill="{FILL[kind]}"/>')
        parts.append(f'<text x="{x + 20}" y="25.5" fill="{GREY}">{NAME[kind]}</text>')
        x += 44 + 7 * len(NAME[kind])
    parts.append(f'<rect x="{x}" y="14" width="14" height="14" fill="{GREY}" fill-opacity="0.2"/>')
    parts.append(f'<text x="{x + 20}" y="25.5" fill="{GREY}">idle: {timeline.bubble:.1%} of the work</text>')
    return parts


def _axis(timeline: Timeline, frame: Frame, bottom: int, unit: str) -> list[str]:
    end = frame.x(timeline.makespan)
    parts = [f'<path d="M{frame.left} {bottom}H{end:.2f}" stroke="{GREY}"/>']
    step = _tick_step(70 / frame.scale)
    for number in range(floor(timeline.makespan / step + 1e-9) + 1):
        x = frame.x(number * step)
        parts.append(f'<path d="M{x:.2f} {bottom}v5" stroke="{GREY}"/>')
        parts.append(f'<text x="{x:.2f}" y="{bottom + 19}" text-anchor="middle" fill="{GREY}">{number * step:g}</text>')
    middle = (frame.left + end) / 2
    parts.append(f'<text x="{middle:.2f}" y="{bottom + 38}" text-anchor="middle" fill="{GREY}">{escape(unit)}</text>')
    return parts


def _tick_step(at_least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `at_least`."""
    power = 10.0 ** floor(log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least)


def timeline_text(timeline: Timeline, columns: int = 160) -> str:
    """The timeline in characters: a line for each stage, each action as its name, then dashes for as long as it takes.

    The scale is the smallest at which every name fits; if the whole would be wider than `columns`, it is cut there and
    the line ends in "...".
    """
    lengths = [(span.end - span.start, len(str(span.action))) for row in timeline.spans for span in row]
    scale = max((letters + 1) / length for length, letters in lengths if length > 0)
    lines = []
    for stage, row in enumerate(timeline.spans):
        line = ""
        for span in row:
            line = line.ljust(round(span.start * scale), ".") + str(span.action)
            line = line.ljust(round(span.end * scale) - 1, "-") + " "
        line = line.ljust(round(timeline.makespan * scale), ".")
        lines.append(f"stage {stage:<2} " + (line if len(line) <= columns else line[: columns - 3] + "..."))
    return "\n".join(lines)


def chrome_trace(timeline: Timeline, microseconds_per_unit: float = 1000) -> dict:
    """The timeline as a Chrome trace object (chrome://tracing, Perfetto): one process, one thread for each stage.

    Write it with `json.dump`. Trace times are in microseconds; one unit of the timeline becomes a millisecond unless
    told otherwise.
    """
    events: list[dict] = []
    for stage, row in enumerate(timeline.spans):
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": stage, "args": {"name": f"stage {stage}"}})
        events += [
            {
                "ph": "X",
                "name": str(span.action),
                "cat": NAME[span.action.kind],
                "pid": 0,
                "tid": stage,
                "ts": span.start * microseconds_per_unit,
                "dur": (span.end - span.start) * microseconds_per_unit,
                "args": {"microbatch": span.action.microbatch, "chunk": span.action.chunk},
            }
            for span in row
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
