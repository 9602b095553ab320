"""Pictures of latency: time against length, and measured against predicted ratio; one panel per runtime."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from funnel_export.latency.latency_report import Latency, LatencyReport, Row
from funnel_export.report import numbers
from funnel_export.report.canvas import Palette, Panel, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {"dense": ("s", (0, (4, 2))), "funnel": ("o", "solid")}
"""Marker and line style of each model."""


def draw_latency(report: LatencyReport) -> Picture:
    """Median times of dense and funnel against length, with their intervals as bands."""
    lows = [found.low_ms for row in report.rows for found in (row.dense, row.funnel)]
    highs = [found.high_ms for row in report.rows for found in (row.dense, row.funnel)]
    limits = max(min(lows), 1e-6) / 1.3, max(highs) * 2.2  # room for the legend
    panels = [
        Panel(title=title(*group), alt=_told(rows), draw=partial(_draw_latency, rows, limits))
        for group, rows in by_runtime(report).items()
    ]
    timed = "of one prompt, or of one step after it," if report.generates else "of one call"
    caption = f"Median time {timed} in milliseconds against length, both logarithmic; bands are 95 % intervals."
    return Picture(name="latency", caption=caption, panels=panels)


def draw_ratio(report: LatencyReport) -> Picture:
    """The ratio of funnel to dense with its interval, and the ratio predicted from operations."""
    ends = [value for row in report.rows for value in (row.ratio.low, row.ratio.high, row.predicted)]
    low, high = min([*ends, 1.0]), max([*ends, 1.0])
    limits = low - 0.06 * (high - low), high + 0.06 * (high - low)
    panels = [
        Panel(
            title=title(*group),
            alt=_told(rows),
            draw=partial(_draw_ratio, rows, limits),
            height=92 + 23 * len(rows),
            head=24,
        )
        for group, rows in by_runtime(report).items()
    ]
    caption = (
        "Time of the funnel over that of the dense model, with 95 % intervals; left of the line the funnel is faster."
    )
    return Picture(name="ratio", caption=caption, panels=panels)


def by_runtime(report: LatencyReport) -> dict[tuple[str, str], list[Row]]:
    """The rows of each runtime and phase, sorted by batch and length."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(report.rows, key=lambda row: (row.batch, row.length)):
        groups.setdefault((row.runtime, report.phase(row)), []).append(row)
    order = [row.runtime for row in report.rows]
    return dict(sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])))


def title(runtime: str, phase: str) -> str:
    """For example `openvino` or `openvino, step`."""
    return f"{runtime}, {phase}" if phase else runtime


def _told(rows: Sequence[Row]) -> str:
    return "; ".join(
        f"batch {row.batch}, length {row.length}: dense {numbers.ms(row.dense.median_ms)} ms, "
        f"funnel {numbers.ms(row.funnel.median_ms)} ms, ratio {row.ratio.value:.3f}, predicted {row.predicted:.3f}"
        for row in rows
    )


def _draw_latency(rows: Sequence[Row], limits: tuple[float, float], axes: "Axes", palette: Palette) -> None:
    lengths = sorted({row.length for row in rows})
    axes.set(xscale="log", yscale="log", ylim=limits, xlabel="length in tokens", ylabel="ms")
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.28 * 1.15)  # room for the labels
    batches = sorted({row.batch for row in rows})
    heights = []
    for batch in batches:
        of_batch = [row for row in rows if row.batch == batch]
        for model in LOOKS:
            _line(
                axes, palette, model, [(row.length, getattr(row, model)) for row in of_batch], first=batch == batches[0]
            )
        last = of_batch[-1]
        heights.append((math.log(last.dense.median_ms) + math.log(last.funnel.median_ms)) / 2)
    gap = 0.07 * (math.log(limits[1]) - math.log(limits[0]))
    for batch, height in zip(batches, _apart(heights, gap), strict=True):
        place = (max(row.length for row in rows if row.batch == batch), math.exp(height))
        axes.annotate(f"batch {batch}", place, (9, 0), textcoords="offset points", va="center", color=palette["ink"])
    _ticks(axes, lengths, limits)
    axes.legend(loc="upper left", ncols=2, handlelength=2.8, columnspacing=1.4, borderaxespad=0.1)


def _line(axes: "Axes", palette: Palette, model: str, points: Sequence[tuple[int, Latency]], *, first: bool) -> None:
    """Draw the line of one model at one batch size."""
    marker, dashes = LOOKS[model]
    colour, lengths = palette[model], [length for length, _ in points]
    lows, highs = [found.low_ms for _, found in points], [found.high_ms for _, found in points]
    axes.fill_between(lengths, lows, highs, color=colour, alpha=0.25, linewidth=0)
    axes.vlines(lengths, lows, highs, color=colour, linewidth=1)
    axes.plot(
        lengths,
        [found.median_ms for _, found in points],
        color=colour,
        marker=marker,
        markersize=4.5,
        linestyle=dashes,
        linewidth=1.6,
        label=model if first else None,
    )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels, in ascending order, at least `gap` apart."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    pushed = sum(placed) / len(placed) - sum(heights) / len(heights)
    return [height - pushed for height in placed]


def _ticks(axes: "Axes", lengths: Sequence[int], limits: tuple[float, float]) -> None:
    """Set ticks at the measured lengths, as many as fit, and at round times."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

    span = math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    kept: list[int] = []
    for length in reversed(lengths):
        if not kept or math.log(kept[-1] / length) > 0.13 * span:
            kept.append(length)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter([str(length) for length in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    subs = (1.0,) if limits[1] / limits[0] > 300 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_ratio(rows: Sequence[Row], limits: tuple[float, float], axes: "Axes", palette: Palette) -> None:
    from matplotlib.ticker import MaxNLocator

    places = list(range(len(rows)))
    values = [row.ratio.value for row in rows]
    margins = [[row.ratio.value - row.ratio.low for row in rows], [row.ratio.high - row.ratio.value for row in rows]]
    axes.axvline(1, color=palette["muted"], linewidth=1.2)
    axes.plot(
        [row.predicted for row in rows],
        places,
        "D",
        markersize=6.5,
        fillstyle="none",
        markeredgewidth=1.5,
        color=palette["predicted"],
        label="predicted",
    )
    axes.errorbar(
        values, places, xerr=margins, fmt="o", markersize=4.5, capsize=3, color=palette["funnel"], label="measured"
    )
    axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5), xlabel="funnel / dense", ylabel="batch × length")
    axes.set_yticks(places, [f"{row.batch} × {row.length}" for row in rows])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.1)
