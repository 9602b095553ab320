"""Tables for people: what a bundle is, what a check found."""

from typing import Any

import onnx_ir as ir
from tabulate import tabulate

from funnel_export.bundle.engine import Engine, engine_names
from funnel_export.bundle.load import Bundle
from funnel_export.exporter.audit import find_faults
from funnel_export.latency.latency_report import LatencyReport, Row
from funnel_export.latency.operations import count_operations
from funnel_export.report.drawing import draw_funnel
from funnel_export.targets.options import describe_options
from funnel_export.targets.registry import get_target
from funnel_export.verify.parity_report import ParityReport

LENGTHS = (128, 512, 2048, 8192)
"""Lengths for which the saving is predicted."""


def predictions(bundle: Bundle) -> list[dict[str, float]]:
    """What the funnel saves at each length, in operations of one row."""
    manifest, rows = bundle.manifest, []
    for length in LENGTHS:
        dense, funnel = (
            count_operations(bundle.architecture, manifest.task, spec, length, manifest.logits).total
            for spec in (None, manifest.spec)
        )
        row = {"length": length, "dense_gflop": dense / 1e9, "funnel_gflop": funnel / 1e9, "ratio": funnel / dense}
        rows.append(row)
    return rows


def audit_bundle(bundle: Bundle) -> list[str]:
    """The faults that an audit finds in a bundle's graph: none, unless the bundle was made by other means."""
    manifest = bundle.manifest
    what = manifest.task, manifest.spec, manifest.dtype, manifest.logits
    return find_faults(ir.load(bundle.graph), bundle.architecture, *what)


def describe_bundle(bundle: Bundle) -> str:
    """A bundle for a person to read: facts, audit, picture, predicted saving."""
    manifest = bundle.manifest
    graph = manifest.graphs[0]
    size = sum(weight.size for weight in manifest.weights)
    facts = [
        ("bundle", bundle.path),
        ("made from", manifest.source),
        ("task", manifest.task),
        ("funnel", manifest.spec or "none (dense)"),
        ("computes in", manifest.dtype),
        ("graph", f"{graph.file}, opset {manifest.opset}, {bundle.graph.stat().st_size / 1e6:.1f} MB"),
        ("weights", f"{len(manifest.weights)} file{'s' * (len(manifest.weights) > 1)}, {size / 1e6:.1f} MB"),
        *(("input", f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]") for t in graph.inputs),
        ("audit", "; ".join(audit_bundle(bundle)) or "passed"),
        *(("output", f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]") for t in graph.outputs),
        *(("engine", name) for name in engine_names(bundle)),
    ]
    parts = [
        tabulate(facts, tablefmt="plain"),
        draw_funnel(bundle.architecture.num_hidden_layers, manifest.spec),
    ]
    if manifest.spec is not None:
        rows = [
            (p["length"], f"{p['dense_gflop']:,.1f}", f"{p['funnel_gflop']:,.1f}", f"{100 * (1 - p['ratio']):.0f} %")
            for p in predictions(bundle)
        ]
        headers = ("length", "dense GFLOP", "funnel GFLOP", "saved")
        parts.append(
            "predicted for one row\n" + tabulate(rows, headers, disable_numparse=True, colalign=("right",) * 4)
        )
    return "\n\n".join(parts)


def describe_engine(engine: Engine) -> str:
    """An engine for a person to read."""
    manifest = engine.manifest
    built_for = manifest.built_for
    kinds = f" ({', '.join(built_for.compute_capabilities)})" if built_for.compute_capabilities else ""
    facts = [
        ("engine", engine.path),
        ("runs in", f"{manifest.target} {manifest.version}"),
        ("on", f"{built_for.device}{kinds}, {built_for.platform}"),
        *(("profile", profile) for profile in manifest.profiles),
        *(("option", f"{key}={value}") for key, value in manifest.options.items()),
        *(("file", f"{record.file}, {record.size / 1e6:.1f} MB") for record in manifest.files),
        *((key.replace("_", " "), _in_words(value)) for key, value in manifest.facts.items() if value),
    ]
    return tabulate(facts, tablefmt="plain", disable_numparse=True)


def _in_words(fact: Any) -> str:
    """A fact that a build told, in one line."""
    if isinstance(fact, dict):
        return ", ".join(f"{key}: {_in_words(value)}" for key, value in fact.items())
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def describe_target_options(name: str) -> str:
    """The options that a target's builds take."""
    rows = describe_options(get_target(name).options)
    more = (get_target(name).options.__doc__ or "").strip()
    return f"{more}\n\n{tabulate(rows, ('option', 'default', ''), disable_numparse=True)}"


def describe_parity(report: ParityReport) -> str:
    """A parity report for a person to read: one line per target and case."""
    rows = [
        (
            target.name,
            target.precision,
            case.case,
            f"{case.metrics.max_rel:.1e}",
            f"{case.metrics.rms_rel:.1e}",
            "" if case.metrics.top1 is None else f"{100 * case.metrics.top1:.0f} %",
            "ok" if case.passed else "FAILED",
        )
        for target in report.targets
        for case in target.cases
    ]
    table = tabulate(
        rows, ("target", "precision", "batch", "max error", "rms error", "top-1", ""), disable_numparse=True
    )
    limit = (
        f"limits: max {report.limit_max_rel:.1e}, rms {report.limit_rms_rel:.1e} = {report.factor:g} x what eager "
        f"PyTorch loses in {report.dtype} against {report.reference}"
    )
    lines = [table, "", limit]
    if report.lengths_left_out:
        lines.append(f"left out as too long: {', '.join(map(str, report.lengths_left_out))}")
    for target in report.targets:
        place = target.first_difference
        if target.left_out:
            lines.append(f"{target.name} has no optimization profile for {', '.join(target.left_out)}")
        if target.error:
            lines.append(f"{target.name}: {target.error}")
        elif place is not None:
            lines.append(f"{target.name} first differs at {place.name} ({place.rms_rel:.1e} > {place.limit:.1e})")
        elif not target.passed:
            lines.append(f"{target.name} differs at the output, and at no boundary before it")
    return "\n".join(lines)


def describe_latency(report: LatencyReport) -> str:
    """A latency report for a person to read: rows and what their numbers are, what has no numbers, the gate."""
    words = ("runtime", "batch", "length", "dense ms", "funnel ms", "tokens/s", "funnel/dense", "interval", "predicted")
    rows = map(_latency_row, report.rows)
    lines = [tabulate(rows, words, disable_numparse=True, colalign=("left", *("right",) * 8)), ""]
    lines.append(f"medians of {report.rounds} calls that took turns, in {report.dtype}; 95 % bootstrap intervals")
    lines += [f"{each.name}: {each.error}" for each in report.runners if each.error]
    lines += [f"{each.place}: no optimization profile takes it" for each in report.not_timed]
    if not report.parity.passed:
        lines.append("parity: FAILED")
    if report.gate is not None:
        wanted = f"at least {report.gate.min_speedup:g} times as fast as dense in every target"
        lines += [f"FAILED: {failure}" for failure in report.gate.failures] or [f"gate: {wanted}: passed"]
    return "\n".join(lines)


def _latency_row(row: Row) -> tuple[object, ...]:
    return (
        row.runtime,
        row.batch,
        row.length,
        f"{row.dense.median_ms:.1f}",
        f"{row.funnel.median_ms:.1f}",
        f"{row.tokens_per_second(row.funnel):,.0f}",
        f"{row.ratio.value:.2f}",
        f"{row.ratio.low:.2f} to {row.ratio.high:.2f}",
        f"{row.predicted:.2f}",
    )
