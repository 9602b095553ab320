"""Pictures of what `check` found inside the model: errors at each boundary for each target, and the largest values."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from funnel_export.report.canvas import Palette, Panel, Picture
from funnel_export.spec.funnel import is_layer_name, is_pooled_name, is_recovered_name
from funnel_export.verify.parity_report import Boundary, ParityReport
from funnel_export.verify.ranges import FLOAT16_MAX, Range, describe_ranges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT, HEAD = 280, 40
"""Height of a panel and of its legend, in points."""
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.5))


def draw_boundaries(report: ParityReport) -> Picture | None:
    """Errors at every boundary on a logarithmic scale, one panel per target; None if no target has boundaries."""
    targets = [target for target in report.targets if target.boundaries]
    if not targets:
        return None
    values = [v for target in targets for b in target.boundaries for v in (b.rms_rel, b.limit, b.floor or 0)]
    limits = _limits(values, [1e-9, 1.0])
    panels = [
        Panel(
            title=f"{target.name}, batch {target.boundaries[0].case}",
            alt=_told(target.boundaries),
            draw=partial(_draw_errors, target.boundaries, limits),
            height=HEIGHT,
            head=HEAD,
        )
        for target in targets
    ]
    caption = (
        "Root-mean-square error over that of the reference after each layer, after pooling (▼) and recovery (▲); "
        "the shaded layers run on the short sequence."
    )
    return Picture(name="boundaries", caption=caption, panels=panels)


def draw_ranges(report: ParityReport) -> Picture | None:
    """The largest values at every boundary on a logarithmic scale; None if they were not measured."""
    found = [place for place in report.ranges if _is_boundary(place.name)]
    if not found:
        return None
    values = [value for place in found for value in (place.largest, place.largest_inside)]
    panel = Panel(
        title=f"eager PyTorch, {report.reference}",
        alt=describe_ranges(report.ranges),
        draw=partial(_draw_ranges, found, _limits([*values, FLOAT16_MAX])),
        height=HEIGHT,
        head=HEAD,
    )
    caption = (
        "Largest absolute values after each layer and inside it, after pooling (▼) and recovery (▲); "
        "the shaded layers run on the short sequence."
    )
    return Picture(name="ranges", caption=caption, panels=[panel])


def _told(found: Sequence[Boundary]) -> str:
    failed = [place.name for place in found if not place.passed]
    return f"{len(found)} boundaries; beyond the limit: {', '.join(failed) or 'none'}"


def _is_boundary(name: str) -> bool:
    return is_layer_name(name) or is_pooled_name(name) or is_recovered_name(name)


def positions(names: Sequence[str]) -> list[float]:
    """Horizontal position of each boundary: layer n at n, pooling and recovery half a step before the next layer."""
    layers = 0
    places = []
    for name in names:
        inner = is_pooled_name(name) or is_recovered_name(name)
        places.append(layers - 0.5 if inner else float(layers))
        layers += not inner
    return places


def _draw_errors(found: Sequence[Boundary], limits: tuple[float, float], axes: "Axes", palette: Palette) -> None:
    names = [boundary.name for boundary in found]
    places = positions(names)
    axes.plot(places, [b.limit for b in found], color=palette["bad"], linestyle=DASHED, linewidth=1.4, label="limit")
    if all(b.floor is not None for b in found):
        floors = [_shown(b.floor or 0, limits) for b in found]
        axes.plot(places, floors, color=palette["dense"], linestyle=DOTTED, linewidth=1.8, label="eager PyTorch")
    errors = [_shown(b.rms_rel, limits) for b in found]
    _plot(names, errors, "target", axes, palette)
    failed = [(place, error) for b, place, error in zip(found, places, errors, strict=True) if not b.passed]
    _mark(failed, "beyond the limit", axes, palette)
    _finish(limits, "relative rms error", axes)


def _draw_ranges(found: Sequence[Range], limits: tuple[float, float], axes: "Axes", palette: Palette) -> None:
    names = [each.name for each in found]
    places = positions(names)
    axes.axhline(FLOAT16_MAX, color=palette["bad"], linestyle=DASHED, linewidth=1.4, label="float16's largest")
    inside = [
        (place, _shown(each.largest_inside, limits)) for each, place in zip(found, places, strict=True) if each.inside
    ]
    if inside:
        axes.plot(*zip(*inside, strict=True), color=palette["dense"], linestyle=DOTTED, linewidth=1.8, label="inside")
    values = [_shown(each.largest, limits) for each in found]
    _plot(names, values, "at the boundary", axes, palette)
    beyond = [
        (place, _shown(each.peak, limits)) for each, place in zip(found, places, strict=True) if not each.fits_float16
    ]
    _mark(beyond, "overflows", axes, palette)
    _finish(limits, "largest absolute value", axes)


def _plot(names: Sequence[str], values: Sequence[float], label: str, axes: "Axes", palette: Palette) -> None:
    """A line through the values at boundaries, over shaded layers that run on the short sequence."""
    places = positions(names)
    starts = [place for name, place in zip(names, places, strict=True) if is_pooled_name(name)]
    ends = [place for name, place in zip(names, places, strict=True) if is_recovered_name(name)]
    for start, end in zip(starts, ends, strict=False):
        axes.axvspan(start, end, facecolor=palette["grid"], alpha=0.4, linewidth=0)
    axes.plot(places, values, color=palette["funnel"], linewidth=1.3, label=label)
    for name, place, value in zip(names, places, values, strict=True):
        marker = "v" if is_pooled_name(name) else "^" if is_recovered_name(name) else "o"
        axes.plot(place, value, marker, markersize=3.5 if marker == "o" else 6.5, color=palette["funnel"])
    axes.set(xlim=(-0.9, max(places) + 0.4))


def _mark(points: Sequence[tuple[float, float]], label: str, axes: "Axes", palette: Palette) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), "X", markersize=6, color=palette["bad"], label=label)


def _finish(limits: tuple[float, float], quantity: str, axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set(yscale="log", ylim=limits, xlabel="layer", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.4)


def _limits(values: Sequence[float], otherwise: Sequence[float] = ()) -> tuple[float, float]:
    """Limits of a logarithmic axis that shows all values but extreme ones."""
    sane = [value for value in values if 1e-100 < value < 1e100] or otherwise
    return min(sane) / 2, max(sane) * 2


def _shown(value: float, limits: tuple[float, float]) -> float:
    """A value clipped to the limits of the picture; values that are not finite go to the top."""
    return min(max(value, limits[0]), limits[1]) if math.isfinite(value) else limits[1]
