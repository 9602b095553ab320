"""The funnel as a picture: a bar for each segment, as long as its sequence."""

import textwrap
from typing import TYPE_CHECKING

from funnel_export.report.canvas import WIDTH, Palette, Panel, Picture
from funnel_export.spec.funnel import FunnelSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR, GAP = 36, 40
"""Points that a bar and the space between two are high."""


def draw_funnel(num_layers: int, spec: FunnelSpec | None) -> Picture:
    """The picture of a funnel, or of a dense model."""
    bars, links = segments(num_layers, spec)
    height = len(bars) * (BAR + GAP) - GAP + 12
    said = "; ".join(f"{name}, {layers}: {length}" for name, layers, length, _ in bars)

    def draw(axes: "Axes", palette: Palette) -> None:
        axes.set_axis_off()
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        for index, (name, layers, length, width) in enumerate(bars):
            _bar(axes, palette, 6 + index * (BAR + GAP), width * (WIDTH - 4), (f"{name}, {layers}", length))
            if index + 1 < len(bars):
                both = width * (WIDTH - 4), bars[index + 1][3] * (WIDTH - 4)
                _link(axes, palette, 6 + index * (BAR + GAP) + BAR, both, links[index])

    caption = "Which layers run on how long a sequence; bars are as long as it."
    return Picture(
        name="funnel", caption=caption, panels=[Panel(title="Funnel", alt=f"{said}.", draw=draw, height=height)]
    )


def segments(num_layers: int, spec: FunnelSpec | None) -> tuple[list[tuple[str, str, str, float]], list[str]]:
    """Name, layers, length and width from 0 to 1 of each segment, and what happens between one and the next."""
    if spec is None:
        return [("dense", _layers(0, num_layers), "L tokens", 1.0)], []
    slots = f"L/{spec.stride} slots" if spec.stride > 1 else "L slots"
    bars = [("middle", _layers(spec.pool_layer, spec.recover_layer), slots, max(0.02, 1 / spec.stride))]
    ahead = ", lookahead" if spec.lookahead else ""
    links = []
    if spec.pool_layer > 0:
        bars.insert(0, ("entry", _layers(0, spec.pool_layer), "L tokens", 1.0))
        links.append(f"▼ pool: {spec.pooling} of {spec.stride} tokens{ahead}, {spec.slot_positions} positions")
    if spec.recover_layer < num_layers:
        bars.append(("exit", _layers(spec.recover_layer, num_layers), "L tokens", 1.0))
        links.append(f"▲ recover: {spec.recovery}")
    return bars, links


def _layers(start: int, end: int) -> str:
    return f"layer {start}" if end == start + 1 else f"layers {start}–{end - 1}"


def _bar(axes: "Axes", palette: Palette, top: float, width: float, lines: tuple[str, str]) -> None:
    from matplotlib.patches import Rectangle

    colour = palette["funnel"]
    axes.add_patch(Rectangle((1, top), width, BAR, facecolor=colour, alpha=0.2, linewidth=0))
    axes.add_patch(Rectangle((1, top), width, BAR, fill=False, edgecolor=colour, linewidth=1.4))
    left = 10 if width > 0.6 * WIDTH else width + 9  # beside a bar that is too short for its text
    axes.text(left, top + BAR * 0.3, lines[0], va="center", fontweight="bold")
    axes.text(left, top + BAR * 0.72, lines[1], va="center", color=palette["muted"])


def _link(axes: "Axes", palette: Palette, top: float, widths: tuple[float, float], text: str) -> None:
    from matplotlib.patches import Polygon

    corners = [(1, top), (1 + widths[0], top), (1 + widths[1], top + GAP), (1, top + GAP)]
    axes.add_patch(Polygon(corners, closed=True, facecolor=palette["grid"], alpha=0.45, linewidth=0))
    axes.text(10, top + GAP / 2, "\n".join(textwrap.wrap(text, 46)), va="center", linespacing=1.3)
