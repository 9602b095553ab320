"""Text for the console: the results of `transplant`."""

from pathlib import Path

from funnel_export.quality.transplant_report import Distance, TransplantReport
from funnel_export.report.columns import NONE, Column, console_table
from funnel_export.spec.funnel import FunnelSpec


def describe_transplant(report: TransplantReport, out: Path) -> str:
    """The results of `transplant` as text: what was written, and how far both models are from the base model."""
    funnel = FunnelSpec.from_dict(report.funnel)
    columns: list[Column[tuple[str, Distance]]] = [
        Column("distance from the base", None, lambda row: row[0], number=False),
        Column("matrices", None, lambda row: _percent(row[1].matrices)),
        Column("vectors", None, lambda row: _percent(row[1].vectors)),
        Column("weights that differ", None, lambda row: f"{row[1].changed:,} of {report.weights:,}"),
        Column("largest", None, lambda row: _percent(row[1].largest)),
        Column("of weight", None, lambda row: row[1].largest_weight or NONE, number=False),
    ]
    rows = [("adapted", report.adapted_from_base), ("instruct", report.instruct_from_base)]
    copied = f", {report.copied:,} tensors copied" if report.copied else ""
    return "\n\n".join(
        [
            f"{out}: funnel {funnel}, recovery {funnel.recovery}, {report.weights:,} weights added up{copied}",
            console_table(columns, rows),
        ]
    )


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.3g} %"
