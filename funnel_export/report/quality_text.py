"""Text for the console: the results of `evaluate`, `fit` and `adapt`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from funnel_export.quality.fit_report import FitReport, MapReport
from funnel_export.quality.quality_report import Group, Measure, QualityReport
from funnel_export.report import numbers
from funnel_export.report.columns import NONE, Column, console_table
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.training.adapt_report import AdaptReport

FEW = 20
"""Intervals over fewer documents are too narrow."""


class _Line(NamedTuple):
    """A measure of the model and of the dense model, and how they differ."""

    name: str
    model: Measure | None
    dense: Measure | None
    distance: Measure | None


def describe_quality(report: QualityReport) -> str:
    """A report as text: what was measured, the measures, and the losses by phase and by position."""
    funnel = None if report.funnel is None else FunnelSpec.from_dict(report.funnel)
    parts = [
        f"{report.model}: {'dense' if funnel is None else f'funnel {funnel}'}, in {report.runtime} on {report.device}, "
        f"{report.precision}\n{_sizes(report)}",
        console_table(_columns(report), _lines(report)),
    ]
    if report.by_phase and funnel is not None:
        parts.append(
            f"by phase: the number of the token that predicts, modulo {funnel.stride}\n"
            + console_table(_group_columns(report, "phase", _phase), report.by_phase)
        )
    if len(report.by_position) > 1:
        parts.append(
            "by position: how many tokens the prediction has seen\n"
            + console_table(_group_columns(report, "position", _position), report.by_position)
        )
    return "\n\n".join([*parts, _remarks(report)])


def _sizes(report: QualityReport) -> str:
    documents = "1 document" if report.documents == 1 else f"{report.documents:,} documents"
    what = "tokens" if report.task.generates else "labels"
    size = f", {report.size:,} bytes" if report.size else ""
    return f"{documents}, {report.scored:,} {what}{size}, in rows of at most {report.length:,} tokens"


def _lines(report: QualityReport) -> list[_Line]:
    names = {
        "loss": "loss, nats",
        "perplexity": "perplexity",
        "bits_per_byte": "bits a byte",
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
        "span_f1": "span F1",
        "kl": "KL from dense, nats",
        "top1": "same best as dense",
    }
    sources = (report.measures, report.dense, report.distance)
    lines = [_Line(text, *(getattr(source, name, None) for source in sources)) for name, text in names.items()]
    return [line for line in lines if any(line[1:])]


def _columns(report: QualityReport) -> tuple[Column[_Line], ...]:
    name: Column[_Line] = Column("", None, lambda line: line.name, number=False)
    own: Column[_Line] = Column("model", None, lambda line: _in_words(line.model))
    if report.dense is None:
        return name, own
    dense: Column[_Line] = Column("dense", None, lambda line: _in_words(line.dense))
    return name, own, dense, Column("model against dense", None, _distance)


def _distance(line: _Line) -> str:
    return _in_words(line.distance, signed=line.model is not None)


def _group_columns(report: QualityReport, name: str, place: Callable[[Group], str]) -> tuple[Column[Group], ...]:
    columns: list[Column[Group]] = [
        Column(name, None, place),
        Column("tokens", None, lambda group: f"{group.scored:,}"),
        Column("loss", None, lambda group: _in_words(group.loss)),
    ]
    if report.dense is not None:
        columns += [
            Column("over dense", None, lambda group: _in_words(group.over_dense, signed=True)),
            Column("KL", None, lambda group: _in_words(group.kl)),
            Column("same best", None, lambda group: _in_words(group.top1)),
        ]
    return tuple(columns)


def _phase(group: Group) -> str:
    return str(group.first)


def _position(group: Group) -> str:
    return str(group.first) if group.first == group.last else f"{group.first:,}-{group.last:,}"


def _in_words(measure: Measure | None, *, signed: bool = False) -> str:
    """For example `3.540 (3.471 to 3.612)`; differences have a sign."""
    return NONE if measure is None else numbers.with_interval(measure.value, measure.low, measure.high, signed=signed)


def _remarks(report: QualityReport) -> str:
    """What the numbers are made of."""
    lines = ["95 % bootstrap intervals over documents"]
    if report.documents < 2:
        lines = ["one document: no intervals"]
    elif report.documents < FEW:
        lines = [f"{lines[0]}, which are too narrow for only {report.documents} of them"]
    if report.against is not None:
        lines.append(f"dense: {report.against}")
    if report.skipped:
        lines.append(f"documents without tokens: {report.skipped:,}")
    if report.cut:
        lines.append(f"documents that were cut: {report.cut:,}")
    lines.append(f"{report.seconds:.1f} s, peak memory {numbers.size(report.peak_memory_bytes)}")
    return "\n".join(lines)


def describe_fit(report: FitReport, out: Path) -> str:
    """The results of `fit` as text: the error that each map leaves, and the losses."""
    funnel = FunnelSpec.from_dict(report.funnel)
    columns: list[Column[tuple[str, MapReport]]] = [
        Column("tokens of a text", None, lambda row: row[0], number=False),
        Column("fitted to", None, lambda row: f"{row[1].tokens:,}"),
        Column("ridge", None, lambda row: f"{row[1].ridge:g}"),
        Column("error left", None, lambda row: f"{row[1].error:.0%}"),
    ]
    parts = [
        f"{out}: funnel {funnel}, recovery {funnel.recovery}, fitted to {report.tokens:,} tokens",
        console_table(columns, list(report.maps.items())),
    ]
    if report.losses is not None:
        losses = report.losses
        parts.append(
            f"loss on {report.held_out:,} held-out tokens, nats a token: dense {losses.dense:.3f}, "
            f"as it is {losses.before:.3f}, fitted {losses.fitted:.3f}"
        )
    return "\n\n".join(parts)


def describe_adapt(report: AdaptReport, out: Path) -> str:
    """The results of `adapt` as text: what was trained, and the losses before and after."""
    funnel = None if report.funnel is None else FunnelSpec.from_dict(report.funnel)
    kind = "dense" if funnel is None else f"funnel {funnel}, recovery {funnel.recovery}"
    settings, losses = report.training, report.losses
    dense = "" if losses.dense is None else f"dense {losses.dense:.3f}, "
    gap = losses.gap_closed
    return (
        f"{out}: {kind}\n"
        f"{report.trained_weights:,} weights ({settings['part']}) trained on {report.seen:,} tokens, {report.tokens:,} "
        f"different ones, in {report.steps:,} steps: objective {settings['objective']}\n\n"
        f"loss on {report.held_out:,} held-out {'tokens' if report.task.generates else 'labels'}, nats: "
        f"{dense}before {losses.before:.3f}, after {losses.after:.3f}"
        + ("" if gap is None else f"\n{gap:z.0%} of the distance to the dense model closed")
        + f"\n{report.seconds:.0f} s on {report.device}"
    )
