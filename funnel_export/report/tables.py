"""The tables of a report: every cell is text, made of what the two JSON files say."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from funnel_export.latency.latency_report import LatencyReport, Row, RunnerResult
from funnel_export.report import numbers
from funnel_export.verify.parity_report import ParityReport, TargetResult


class Cell(NamedTuple):
    """A cell, and whether it is good or bad news."""

    text: str
    mark: str = ""


class Column(NamedTuple):
    """A column's head, and whether its cells are numbers."""

    name: str
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads."""

    columns: list[Column]
    rows: list[list[Cell]]


def _table(words: Iterable[str], figures: Iterable[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table whose first columns are words and the others numbers."""
    columns = [*(Column(name, numeric=False) for name in words), *(Column(name) for name in figures)]
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    assert all(len(row) == len(columns) for row in cells)
    return Table(columns, cells)


def latency_table(report: LatencyReport) -> Table:
    """Each shape in each runtime: times, ratio and prediction."""

    def row(found: Row) -> list[str | Cell]:
        faster = "good" if found.ratio.high < 1 else "bad" if found.ratio.low > 1 else ""
        return [
            found.runtime,
            str(found.batch),
            f"{found.length:,}",
            numbers.latency(found.dense),
            numbers.latency(found.funnel),
            Cell(numbers.ratio(found.ratio), faster),
            f"{found.predicted:.3f}",
            " / ".join(numbers.rate(found.tokens_per_second(model)) for model in (found.dense, found.funnel)),
            "–" if found.speedup_over_eager is None else numbers.times(found.speedup_over_eager),
            f"{numbers.ms(found.dense_first_ms)} / {numbers.ms(found.funnel_first_ms)}",
        ]

    figures = (
        *("batch", "length", "dense ms", "funnel ms", "funnel/dense", "predicted"),
        *("tokens/s, dense / funnel", "× over eager dense", "first call ms, dense / funnel"),
    )
    return _table(["runtime"], figures, map(row, report.rows))


def runner_table(report: LatencyReport) -> Table:
    """What each runner took beside time."""

    def row(found: RunnerResult) -> list[str]:
        memory = found.memory
        held = (None, None) if memory is None else (memory.host_bytes, memory.device_bytes)
        load = numbers.seconds(found.load_seconds)
        return [
            found.runtime,
            found.model,
            found.device or "–",
            found.precision or found.dtype,
            load,
            *map(numbers.size, held),
        ]

    ran = [found for found in report.runners if not found.error]
    return _table(["runtime", "model", "device", "precision"], ["load", "host memory", "device memory"], map(row, ran))


def missing_table(report: LatencyReport) -> Table:
    """Runners without numbers, and why; then engines that lack some of the shapes."""
    missing = [found for found in report.runners if found.error]
    rows: list[list[str | Cell]] = [[each.runtime, each.model, Cell(each.error or "", "bad")] for each in missing]
    for place in report.not_timed:
        reason = f"batch {place.batch}, length {place.length:,}: no optimization profile takes it"
        rows.append([place.runtime, "both", Cell(reason, "bad")])
    return _table(["runtime", "model", "reason"], [], rows)


def limits_table(report: ParityReport) -> Table:
    """What eager PyTorch loses, and what a target may."""
    floor = report.floor
    rows = [
        ["largest", numbers.error(floor.max_rel), numbers.error(report.limit_max_rel)],
        ["root mean square", numbers.error(floor.rms_rel), numbers.error(report.limit_rms_rel)],
    ]
    return _table(["relative error"], [f"eager {report.dtype}", "limit"], rows)


def target_table(report: ParityReport) -> Table:
    """The worst that each target shows over all batches."""

    def row(found: TargetResult) -> list[str | Cell]:
        all_metrics = [case.metrics for case in found.cases]
        worst = [_worst(metrics.max_rel for metrics in all_metrics), _worst(metrics.rms_rel for metrics in all_metrics)]
        limits = report.limit_max_rel, report.limit_rms_rel
        top1 = [metrics.top1 for metrics in all_metrics if metrics.top1 is not None]
        return [
            found.name,
            found.device or "–",
            found.precision or "–",
            Cell("ok", "good") if found.passed else Cell("FAILED", "bad"),
            str(len(found.cases)),
            *(_against(value, limit) for value, limit in zip(worst, limits, strict=True)),
            numbers.share(min(top1, default=None)),
        ]

    words = ("target", "device", "precision", "parity")
    return _table(words, ["batches", "worst max error", "worst rms error", "lowest top-1"], map(row, report.targets))


def case_table(report: ParityReport) -> Table:
    """Every batch on every target."""
    rows: list[list[str | Cell]] = [
        [
            target.name,
            case.case,
            Cell("ok", "good") if case.passed else Cell("FAILED", "bad"),
            _against(case.metrics.max_rel, report.limit_max_rel),
            _against(case.metrics.rms_rel, report.limit_rms_rel),
            numbers.error(case.metrics.max_abs),
            "–" if case.metrics.kl is None else numbers.error(case.metrics.kl),
            numbers.share(case.metrics.top1),
        ]
        for target in report.targets
        for case in target.cases
    ]
    return _table(["target", "batch", "parity"], ["max error", "rms error", "max abs", "KL", "top-1"], rows)


def boundary_table(report: ParityReport) -> Table:
    """Every boundary of every target."""
    rows: list[list[str | Cell]] = [
        [
            target.name,
            place.case,
            place.name,
            _against(place.rms_rel, place.limit),
            "–" if place.floor is None else numbers.error(place.floor),
            numbers.error(place.limit),
        ]
        for target in report.targets
        for place in target.boundaries
    ]
    return _table(["target", "batch", "boundary"], ["rms error", f"eager {report.dtype}", "limit"], rows)


def _against(value: float, limit: float) -> Cell:
    return Cell(numbers.error(value), "" if value <= limit else "bad")


def _worst(values: Iterable[float]) -> float:
    """The largest; what is not a number is worse than anything, and so is nothing at all."""
    found = list(values)
    return max(found) if found and not any(map(math.isnan, found)) else math.nan
