"""The columns of every table in the console, Markdown and HTML.

To add a column, add one entry to a list here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from tabulate import tabulate

from funnel_export.latency.latency_report import LatencyReport, Place, Row, RunnerResult
from funnel_export.report import numbers
from funnel_export.verify.metrics import Metrics
from funnel_export.verify.parity_report import Boundary, CaseResult, Limits, ParityReport, TargetResult
from funnel_export.verify.ranges import FLOAT16_MAX, Range, magnitude, share_of_float16

T = TypeVar("T")
NONE = "–"
"""Text of an empty cell."""


class Cell(NamedTuple):
    """The text of a cell, and `good` or `bad` as a mark."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column: its header, and the text of its cells on pages and in the console."""

    name: str
    page: Callable[[T], str | Cell] | None
    """Text on pages; None hides the column there."""
    console: Callable[[T], str | Cell] | None = None
    """Text in the console; None hides the column there."""
    number: bool = True
    """Whether its cells are numbers, which are right-aligned."""


def _both(name: str, text: Callable[[T], str | Cell], *, number: bool = True) -> Column[T]:
    """A column with the same text on pages and in the console."""
    return Column(name, text, text, number)


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """Columns and rows of a table on a page."""

    columns: list[Column[T]]
    rows: list[list[Cell]]


def page_table(columns: Sequence[Column[T]], items: Iterable[T]) -> Table[T]:
    """A table for Markdown and HTML."""
    shown = [(column, column.page) for column in columns if column.page is not None]
    return Table([column for column, _ in shown], [[_cell(text(item)) for _, text in shown] for item in items])


def console_table(columns: Sequence[Column[T]], items: Iterable[T]) -> str:
    """A table for the console, as text."""
    shown = [(column, column.console) for column in columns if column.console is not None]
    rows = [[_cell(text(item)).text for _, text in shown] for item in items]
    alignment = tuple("right" if column.number else "left" for column, _ in shown)
    heads = [column.name for column, _ in shown]
    return tabulate(rows, heads, disable_numparse=True, colalign=alignment if rows else None)


def _cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


# Latency


def _speed(row: Row) -> str:
    return " / ".join(numbers.rate(row.tokens_per_second(model)) for model in (row.dense, row.funnel))


def _ratio(row: Row) -> Cell:
    return Cell(numbers.ratio(row.ratio), "good" if row.ratio.high < 1 else "bad" if row.ratio.low > 1 else "")


_PLACE: tuple[Column[Row], ...] = (
    _both("runtime", lambda row: row.runtime, number=False),
    _both("batch", lambda row: str(row.batch)),
)
_TIMES: tuple[Column[Row], ...] = (
    Column("length", lambda row: f"{row.length:,}", lambda row: str(row.length)),
    Column("dense ms", lambda row: numbers.latency(row.dense), lambda row: f"{row.dense.median_ms:.1f}"),
    Column("funnel ms", lambda row: numbers.latency(row.funnel), lambda row: f"{row.funnel.median_ms:.1f}"),
    Column("tokens/s", None, lambda row: f"{row.tokens_per_second(row.funnel):,.0f}"),
    Column("funnel/dense", _ratio, lambda row: f"{row.ratio.value:.2f}"),
    Column("interval", None, lambda row: f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"),
    Column("predicted", lambda row: f"{row.predicted:.3f}", lambda row: f"{row.predicted:.2f}"),
    Column("tokens/s, dense / funnel", _speed),
    Column(
        "× over eager dense",
        lambda row: NONE if row.speedup_over_eager is None else numbers.times(row.speedup_over_eager),
    ),
    Column(
        "first call ms, dense / funnel",
        lambda row: f"{numbers.ms(row.dense_first_ms)} / {numbers.ms(row.funnel_first_ms)}",
    ),
)


def latency_columns(report: LatencyReport) -> tuple[Column[Row], ...]:
    """Columns of one shape in one runtime."""
    phase: Column[Row] = _both("phase", report.phase, number=False)
    return (*_PLACE, *([phase] * report.generates), *_TIMES)


_RUNNERS: tuple[Column[RunnerResult], ...] = (
    Column("runtime", lambda found: found.runtime, number=False),
    Column("model", lambda found: found.model, number=False),
    Column("device", lambda found: found.device or NONE, number=False),
    Column("precision", lambda found: found.precision or found.dtype, number=False),
    Column("load", lambda found: numbers.seconds(found.load_seconds)),
    Column("host memory", lambda found: numbers.size(None if found.memory is None else found.memory.host_bytes)),
    Column("device memory", lambda found: numbers.size(None if found.memory is None else found.memory.device_bytes)),
)


def runner_columns(report: LatencyReport) -> tuple[Column[RunnerResult], ...]:
    """Columns of loading time and memory of one runner."""
    cache: Column[RunnerResult] = Column("cache for a token", lambda found: numbers.size(_cache(found)))
    return (*_RUNNERS, *([cache] * report.generates))


def _cache(found: RunnerResult) -> int | None:
    return None if found.cache_bytes_per_token is None else round(found.cache_bytes_per_token)


class Missing(NamedTuple):
    """A runtime without numbers, with the reason."""

    runtime: str
    model: str
    reason: str


MISSING: tuple[Column[Missing], ...] = (
    Column("runtime", lambda found: found.runtime, number=False),
    Column("model", lambda found: found.model, number=False),
    Column("reason", lambda found: Cell(found.reason, "bad"), number=False),
)


def missing(report: LatencyReport) -> list[Missing]:
    """Runners without numbers, then shapes that an engine does not take."""
    failed = [Missing(found.runtime, found.model, found.error) for found in report.runners if found.error]
    return failed + [Missing(place.runtime, "both", _not_timed(place)) for place in report.not_timed]


def _not_timed(place: Place) -> str:
    return f"{place.shape}: no optimization profile takes it"


# Parity


class Limit(NamedTuple):
    """One error measure: eager PyTorch's own error, and the limit for targets."""

    error: str
    floor: float
    limit: float


def limits(report: ParityReport) -> list[Limit]:
    """The limits of a report."""
    found = _limits(report.limits)
    rounded = next((target.limits for target in report.targets if target.limits), None)
    if rounded is not None:
        found += [each._replace(error=f"{each.error}, activations in 8 bits") for each in _limits(rounded)]
    return found


def _limits(limits: Limits) -> list[Limit]:
    found = [
        Limit("largest", limits.floor.max_rel, limits.max_rel),
        Limit("root mean square", limits.floor.rms_rel, limits.rms_rel),
    ]
    if limits.kl is not None and limits.floor.kl is not None:
        found.append(Limit("KL divergence, nats", limits.floor.kl, limits.kl))
    return found


def limit_columns(report: ParityReport) -> tuple[Column[Limit], ...]:
    """Columns of `limits`."""
    return (
        Column("relative error", lambda found: found.error, number=False),
        Column(f"eager {report.dtype}", lambda found: numbers.error(found.floor)),
        Column("limit", lambda found: numbers.error(found.limit)),
    )


def _verdict(passed: bool) -> Cell:
    return Cell("ok", "good") if passed else Cell("FAILED", "bad")


def _against(value: float, limit: float) -> Cell:
    return Cell(numbers.error(value), "" if value <= limit else "bad")


def _divergence(value: float | None, limit: float | None) -> Cell | str:
    if value is None:
        return NONE
    return numbers.error(value) if limit is None else _against(value, limit)


def _worst(values: Iterable[float]) -> float:
    """The largest value; NaN if any is NaN or there are none."""
    found = list(values)
    return max(found) if found and not any(map(math.isnan, found)) else math.nan


def _lowest_top1(metrics: Iterable[Metrics]) -> str:
    return numbers.share(min((each.top1 for each in metrics if each.top1 is not None), default=None))


def target_columns(report: ParityReport) -> tuple[Column[TargetResult], ...]:
    """Columns of targets, with the worst errors over all batches."""

    def metrics(found: TargetResult) -> list[Metrics]:
        return [case.metrics for case in found.cases]

    return (
        Column("target", lambda found: found.name, number=False),
        Column("device", lambda found: found.device or NONE, number=False),
        Column("precision", lambda found: found.precision or NONE, number=False),
        Column("parity", lambda found: _verdict(found.passed), number=False),
        Column("batches", lambda found: str(len(found.cases))),
        Column(
            "worst max error",
            lambda found: _against(_worst(each.max_rel for each in metrics(found)), report.limits_of(found).max_rel),
        ),
        Column(
            "worst rms error",
            lambda found: _against(_worst(each.rms_rel for each in metrics(found)), report.limits_of(found).rms_rel),
        ),
        Column("lowest top-1", lambda found: _lowest_top1(metrics(found))),
    )


class OnTarget(NamedTuple):
    """One batch on one target."""

    target: TargetResult
    case: CaseResult


def cases(report: ParityReport) -> list[OnTarget]:
    """Every batch on every target."""
    return [OnTarget(target, case) for target in report.targets for case in target.cases]


def worst_cases(report: ParityReport) -> list[OnTarget]:
    """For every target, the batch with the largest error, failed batches first."""

    def distance(case: CaseResult) -> tuple[bool, float]:
        return not case.passed, case.metrics.max_rel

    return [OnTarget(target, max(target.cases, key=distance)) for target in report.targets if target.cases]


def case_columns(report: ParityReport) -> tuple[Column[OnTarget], ...]:
    """Columns of `cases`."""

    def allowed(found: OnTarget) -> Limits:
        return report.limits_of(found.target)

    return (
        _both("target", lambda found: found.target.name, number=False),
        Column("precision", None, lambda found: found.target.precision, number=False),
        _both("batch", lambda found: found.case.case, number=False),
        _both("parity", lambda found: _verdict(found.case.passed), number=False),
        _both("max error", lambda found: _against(found.case.metrics.max_rel, allowed(found).max_rel)),
        _both("rms error", lambda found: _against(found.case.metrics.rms_rel, allowed(found).rms_rel)),
        Column("max abs", lambda found: numbers.error(found.case.metrics.max_abs)),
        Column("KL", lambda found: _divergence(found.case.metrics.kl, allowed(found).kl)),
        _both("top-1", lambda found: numbers.share(found.case.metrics.top1)),
    )


class AtBoundary(NamedTuple):
    """One boundary of one target."""

    target: TargetResult
    place: Boundary


def boundaries(report: ParityReport) -> list[AtBoundary]:
    """Every boundary of every target."""
    return [AtBoundary(target, place) for target in report.targets for place in target.boundaries]


def boundary_columns(report: ParityReport) -> tuple[Column[AtBoundary], ...]:
    """Columns of `boundaries`."""
    return (
        Column("target", lambda found: found.target.name, number=False),
        Column("batch", lambda found: found.place.case, number=False),
        Column("boundary", lambda found: found.place.name, number=False),
        Column("rms error", lambda found: _against(found.place.rms_rel, found.place.limit)),
        Column(
            f"eager {report.dtype}",
            lambda found: NONE if found.place.floor is None else numbers.error(found.place.floor),
        ),
        Column("limit", lambda found: numbers.error(found.place.limit)),
    )


def _value(value: float) -> Cell:
    return Cell(magnitude(value), "" if value <= FLOAT16_MAX else "bad")


RANGES: tuple[Column[Range], ...] = (
    Column("place", lambda found: found.name, number=False),
    Column("largest value", lambda found: _value(found.largest)),
    Column("largest inside", lambda found: NONE if found.inside is None else _value(found.largest_inside)),
    Column("inside", lambda found: found.inside or NONE, number=False),
    Column(f"of float16's {magnitude(FLOAT16_MAX)}", lambda found: share_of_float16(found.peak)),
)
"""The largest values at one place of the model."""
