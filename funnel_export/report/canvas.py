"""Drawing panels: each as an SVG for the HTML page, or all panels of a picture as one PNG."""

import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from funnel_export.errors import printable
from funnel_export.report.palette import LIGHT, SENTINELS, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Palette = Mapping[str, str]

WIDTH = 340
"""Width of a panel in points: one fits a phone, several fit a desktop screen side by side."""
COLUMNS = 3
DPI = 160
LARGEST = 30_000
"""Most pixels of a side; matplotlib's own limit is twice as high."""
FONT = 10.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One plot of a picture."""

    title: str
    alt: str
    """Text alternative for screen readers."""
    draw: Callable[["Axes", Palette], None]
    height: float = 250
    """Height in points."""
    head: float = 6
    """Space between the axes and the title, in points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Panels that belong together, written as `<name>.png`."""

    name: str
    caption: str
    panels: list[Panel]

    def svgs(self) -> list[str]:
        """Each panel as an inline SVG with the colours and font of the page."""
        return [_svg(panel, f"{self.name}-{index}") for index, panel in enumerate(self.panels)]

    def png(self) -> bytes:
        """All panels with their titles on a white background, as a PNG file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        columns = 2 if len(self.panels) == 4 else min(COLUMNS, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        height = max(panel.height for panel in self.panels) + 26
        with _style(LIGHT):
            figure = _figure(WIDTH * columns, height * rows)
            grid = list(figure.subplots(rows, columns, squeeze=False).flat)
            for panel, axes in zip(self.panels, grid, strict=False):
                panel.draw(axes, LIGHT)
                axes.set_title(_shorten(panel.title), loc="left", fontweight="bold", pad=panel.head, parse_math=False)
            for axes in grid[len(self.panels) :]:
                axes.set_axis_off()
            figure.set(dpi=min(DPI, LARGEST * 72 / (height * rows)), facecolor=LIGHT["page"])
            return _written(FigureCanvasAgg(figure).print_png)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72), dpi=72, layout="constrained", facecolor="none")


def _svg(panel: Panel, prefix: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with _style(SENTINELS):
        figure = _figure(WIDTH, panel.height)
        panel.draw(figure.subplots(), SENTINELS)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        svg = _written(partial(FigureCanvasSVG(figure).print_svg, metadata=metadata)).decode()
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", view_box.end()) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would apply to the whole page
    for before in (' id="', 'href="#', "url(#"):  # ids must be unique among the pictures of a page
        body = body.replace(before, f"{before}{prefix}-")
    opening = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(printable(panel.alt))}">'
    return opening + themed(body).strip()


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    """What a canvas writes. `Figure.savefig` would draw everything twice."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib warns of characters that are missing in the font
        write(stream)
    return stream.getvalue()


@contextmanager
def _style(palette: Palette) -> Iterator[None]:
    """Use matplotlib's defaults and this package's style, whatever the user's settings; pictures are reproducible."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # on first use, it logs that it builds its font cache
    from matplotlib import style

    ours: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "funnel_export",
        "font.family": "DejaVu Sans",
        "font.size": FONT,
        "axes.labelsize": FONT,
        "axes.titlesize": FONT + 1,
        "xtick.labelsize": FONT - 0.5,
        "ytick.labelsize": FONT - 0.5,
        "legend.fontsize": FONT - 0.5,
        "legend.frameon": False,
        "axes.facecolor": "none",
        "axes.edgecolor": palette["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette["grid"],
        "grid.linewidth": 0.7,
        **{f"{name}.color": palette["ink"] for name in ("text", "xtick", "ytick")},
        "axes.labelcolor": palette["ink"],
    }
    try:
        with style.context(["default", ours]):
            yield
    finally:
        logger.setLevel(level)


def _shorten(text: str) -> str:
    """A title cut to one line that fits over a panel."""
    text = printable(text).replace("\n", " ")
    return text if len(text) <= 36 else f"{text[:35]}…"
