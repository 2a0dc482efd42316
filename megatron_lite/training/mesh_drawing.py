"""The layout as a picture: one panel for each model replica, stages from top to bottom, tensor ranks side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lite.config import Resolved
from megatron_lite.parallel.pipeline.schedules import Placement

# Of the stages in turn: with dark text on them they read on a light and on a dark page.
FILL = ("#8ab6f0", "#f2b179", "#9bd3a0", "#c9a9e6", "#e8cf6b", "#8fd0d3")
INK = "#1b1f24"
GREY = "#7d7d7d"  # as far from white as from black: names stand on the page's own background
# More replicas than this say nothing new.
MAX_PANELS = 4


@dataclass(frozen=True)
class Sizes:
    """In pixels."""

    cell_width: int = 62
    cell_height: int = 40
    gap: int = 8
    panel_gap: int = 44
    left: int = 184
    top: int = 56


def rank_at(layout: Resolved, pipeline: int, data: int, context: int, tensor: int) -> int:
    """The global rank there: ranks fill [pipeline, data, context, tensor] in order, tensor fastest."""
    return ((pipeline * layout.data + data) * layout.context + context) * layout.tensor + tensor


def mesh_svg(layout: Resolved, placement: Placement) -> str:
    """A self-contained SVG of at most MAX_PANELS replicas; safe inside an HTML page (no style sheet, no script)."""
    held = [_held(layout, placement, stage) for stage in range(placement.stages)]
    sizes = Sizes(left=max(Sizes.left, 8 * max(map(len, held))))
    columns = layout.context * layout.tensor
    panels = min(layout.data, MAX_PANELS)
    panel_width = columns * (sizes.cell_width + sizes.gap) - sizes.gap
    width = sizes.left + panels * (panel_width + sizes.panel_gap) - sizes.panel_gap + 4
    height = sizes.top + layout.pipeline * (sizes.cell_height + sizes.gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{GREY}" role="img">',
        f"<title>{layout.world_size} ranks: {describe(layout)}</title>",
        *_stage_names(held, sizes),
    ]
    for data in range(panels):
        left = sizes.left + data * (panel_width + sizes.panel_gap)
        parts.append(
            f'<text x="{left + panel_width / 2}" y="16" text-anchor="middle" font-size="14">data {data}</text>'
        )
        parts += _panel(layout, sizes, data, left)
    return "\n".join([*parts, "</svg>"])


def describe(layout: Resolved) -> str:
    """The sizes in words, those of 1 left out."""
    axes = {"tensor": layout.tensor, "context": layout.context, "pipeline": layout.pipeline, "data": layout.data}
    return " × ".join(f"{name} {size}" for name, size in axes.items() if size > 1) or "one process"


def _stage_names(held: Sequence[str], sizes: Sizes) -> list[str]:
    parts = []
    for stage, what in enumerate(held):
        y = sizes.top + stage * (sizes.cell_height + sizes.gap) + sizes.cell_height / 2
        parts.append(f'<text x="0" y="{y - 3}" font-size="14">stage {stage}</text>')
        parts.append(f'<text x="0" y="{y + 13}">{what}</text>')
    return parts


def _held(layout: Resolved, placement: Placement, stage: int) -> str:
    """What lies on a stage."""
    numbers = [placement.virtual_stage(stage, chunk) for chunk in range(placement.chunks)]
    return ", ".join(name for number in numbers for name in _contents(layout, number))


def _contents(layout: Resolved, number: int) -> list[str]:
    first, layers = sum(layout.stage_layers[:number]), layout.stage_layers[number]
    blocks = f"block {first}" if layers == 1 else f"blocks {first}–{first + layers - 1}"
    ends = ["embedding"] * (number == 0) + ["head"] * (number == len(layout.stage_layers) - 1)
    return [blocks, *ends]


def _panel(layout: Resolved, sizes: Sizes, data: int, left: float) -> list[str]:
    parts = []
    for column in range(layout.context * layout.tensor):
        context, tensor = divmod(column, layout.tensor)
        x = left + column * (sizes.cell_width + sizes.gap)
        name = f"t{tensor}" if layout.context == 1 else f"c{context} t{tensor}"
        middle = x + sizes.cell_width / 2
        parts.append(f'<text x="{middle}" y="{sizes.top - 12}" text-anchor="middle">{name}</text>')
        for stage in range(layout.pipeline):
            y = sizes.top + stage * (sizes.cell_height + sizes.gap)
            rank, base = rank_at(layout, stage, data, context, tensor), y + sizes.cell_height / 2 + 5
            parts.append(
                f'<rect x="{x}" y="{y}" width="{sizes.cell_width}" height="{sizes.cell_height}" rx="5" '
                f'fill="{FILL[stage % len(FILL)]}"/>'
                f'<text x="{middle}" y="{base}" text-anchor="middle" font-size="15" fill="{INK}">{rank}</text>'
            )
    return parts
