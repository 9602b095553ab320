"""A picture of the funnel: one bar per segment, as long as its sequence."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from funnel_export.report.canvas import WIDTH, Palette, Panel, Picture
from funnel_export.report.drawing import funnel_bars
from funnel_export.spec.funnel import Segment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR, GAP = 36, 40
"""Heights of a bar and of the gap between two bars, in points."""


def draw_funnel(segments: Sequence[Segment]) -> Picture:
    """The picture of a funnel or of a dense model."""
    bars = funnel_bars(segments)
    height = len(bars) * (BAR + GAP) - GAP + 12
    said = "; ".join(f"{bar.name}, {bar.layers}: {bar.length}" for bar in bars)

    def draw(axes: "Axes", palette: Palette) -> None:
        axes.set_axis_off()
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        for index, bar in enumerate(bars):
            top, width = 6 + index * (BAR + GAP), bar.share * (WIDTH - 4)
            _bar(axes, palette, top, width, (f"{bar.name}, {bar.layers}".replace("-", "–"), bar.length))
            if index + 1 < len(bars):
                following = bars[index + 1]
                links = "; ".join(filter(None, (bar.after, following.before)))
                _link(axes, palette, top + BAR, (width, following.share * (WIDTH - 4)), links)

    caption = "The layers and the length of the sequence on which they run; the bars have its length."
    return Picture(
        name="funnel", caption=caption, panels=[Panel(title="Funnel", alt=f"{said}.", draw=draw, height=height)]
    )


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
