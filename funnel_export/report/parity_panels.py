"""The picture of errors inside the model: the error and the limit at each boundary, one panel per target."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from funnel_export.report.canvas import Palette, Panel, Picture
from funnel_export.spec.funnel import is_pooled_name, is_recovered_name
from funnel_export.verify.parity_report import Boundary, ParityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_boundaries(report: ParityReport) -> Picture | None:
    """Errors at every boundary on a logarithmic scale; None if no target has boundaries."""
    targets = [target for target in report.targets if target.boundaries]
    if not targets:
        return None
    values = [v for target in targets for b in target.boundaries for v in (b.rms_rel, b.limit, b.floor or 0)]
    sane = [value for value in values if 1e-100 < value < 1e100] or [1e-9, 1.0]
    limits = min(sane) / 2, max(sane) * 2
    panels = [
        Panel(
            title=f"{target.name}, batch {target.boundaries[0].case}",
            alt=_told(target.boundaries),
            draw=partial(_draw, target.boundaries, limits),
            height=280,
            head=40,
        )
        for target in targets
    ]
    caption = (
        "Root-mean-square error over that of the reference after each layer, after pooling (▼) and recovery (▲); "
        "the shaded layers run on the short sequence."
    )
    return Picture(name="boundaries", caption=caption, panels=panels)


def _told(found: Sequence[Boundary]) -> str:
    failed = [place.name for place in found if not place.passed]
    return f"{len(found)} boundaries; beyond the limit: {', '.join(failed) or 'none'}"


def positions(found: Sequence[Boundary]) -> list[float]:
    """Horizontal position of each boundary: layer n at n, pooling and recovery half a step before the next layer."""
    layers = 0
    places = []
    for boundary in found:
        inner = is_pooled_name(boundary.name) or is_recovered_name(boundary.name)
        places.append(layers - 0.5 if inner else float(layers))
        layers += not inner
    return places


def _draw(found: Sequence[Boundary], limits: tuple[float, float], axes: "Axes", palette: Palette) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    places = positions(found)
    starts = [place for b, place in zip(found, places, strict=True) if is_pooled_name(b.name)]
    ends = [place for b, place in zip(found, places, strict=True) if is_recovered_name(b.name)]
    for start, end in zip(starts, ends, strict=False):
        axes.axvspan(start, end, facecolor=palette["grid"], alpha=0.4, linewidth=0)
    axes.plot(
        places, [b.limit for b in found], color=palette["bad"], linestyle=(0, (4, 2)), linewidth=1.4, label="limit"
    )
    if all(b.floor is not None for b in found):
        floors = [_shown(b.floor or 0, limits) for b in found]
        axes.plot(places, floors, color=palette["dense"], linestyle=(0, (1, 1.5)), linewidth=1.8, label="eager PyTorch")
    errors = [_shown(b.rms_rel, limits) for b in found]
    axes.plot(places, errors, color=palette["funnel"], linewidth=1.3, label="target")
    for boundary, place, error in zip(found, places, errors, strict=True):
        marker = "v" if is_pooled_name(boundary.name) else "^" if is_recovered_name(boundary.name) else "o"
        axes.plot(place, error, marker, markersize=3.5 if marker == "o" else 6.5, color=palette["funnel"])
    failed = [(place, error) for b, place, error in zip(found, places, errors, strict=True) if not b.passed]
    if failed:
        axes.plot(*zip(*failed, strict=True), "X", markersize=6, color=palette["bad"], label="beyond the limit")
    axes.set(yscale="log", ylim=limits, xlabel="layer", ylabel="relative rms error", xlim=(-0.9, max(places) + 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.4)


def _shown(value: float, limits: tuple[float, float]) -> float:
    """A value clipped to the limits of the picture; values that are not finite go to the top."""
    return min(max(value, limits[0]), limits[1]) if math.isfinite(value) else limits[1]
