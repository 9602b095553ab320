"""Text for the console: descriptions of bundles and engines, results of `check` and `bench`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from funnel_export.bundle.engine import Engine, products_of_engines
from funnel_export.bundle.load import Bundle, Graph
from funnel_export.bundle.ports import Port
from funnel_export.bundle.products import FACT, Products
from funnel_export.bundle.weights import DerivedFile
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.latency.operations import predictions
from funnel_export.report.columns import case_columns, cases, console_table, latency_columns, worst_cases
from funnel_export.report.cost import describe_cost
from funnel_export.report.drawing import draw_text
from funnel_export.targets.options import describe_options
from funnel_export.targets.registry import get_target
from funnel_export.verify.parity_report import ParityReport, TargetResult
from funnel_export.verify.ranges import describe_ranges


def describe_bundle(bundle: Bundle, audits: Mapping[str, Sequence[str]]) -> str:
    """A bundle as text: facts, audit findings by role of the graph, a drawing, and the predicted savings."""
    manifest, spec = bundle.manifest, bundle.spec
    size = sum(weight.size for weight in manifest.weights)
    facts = [
        ("bundle", bundle.path),
        ("made from", manifest.source),
        ("task", spec.task),
        ("funnel", spec.funnel or "none (dense)"),
        ("computes in", spec.dtype),
        *([] if spec.quantization is None else [("stored in", spec.quantization)]),
        *(fact for graph in bundle.graphs.values() for fact in _graph_facts(graph, audits[graph.role])),
        ("weights", f"{len(manifest.weights)} file{'s' * (len(manifest.weights) > 1)}, {size / 1e6:.1f} MB"),
        *(("derived", f"{w.file}: {w.recipe}") for w in manifest.weights if isinstance(w, DerivedFile)),
        *(
            ("engine", name if made is None else f"{name}, products: {made}")
            for name, made in products_of_engines(bundle).items()
        ),
    ]
    parts = [tabulate(facts, tablefmt="plain"), draw_text(bundle.segments)]
    if spec.funnel is not None:
        rows = [
            (p["length"], f"{p['dense_gflop']:,.1f}", f"{p['funnel_gflop']:,.1f}", f"{100 * (1 - p['ratio']):.0f} %")
            for p in predictions(bundle)
        ]
        headers = ("length", "dense GFLOP", "funnel GFLOP", "saved")
        parts.append(
            "predicted for one row\n" + tabulate(rows, headers, disable_numparse=True, colalign=("right",) * 4)
        )
    return "\n\n".join(parts)


def _graph_facts(graph: Graph, findings: Sequence[str]) -> list[tuple[str, str]]:
    size = graph.path.stat().st_size / 1e6
    return [
        ("graph", f"{graph.path.name}, opset {graph.spec.opset}, {size:.1f} MB"),
        *(("input", _port_in_words(port)) for port in graph.inputs),
        *(("output", _port_in_words(port)) for port in graph.outputs),
        ("audit", "; ".join(findings) or "passed"),
    ]


def _port_in_words(port: Port) -> str:
    return f"{port.name} {port.dtype} [{', '.join(map(str, port.shape))}]"


def describe_engine(engine: Engine) -> str:
    """An engine as text."""
    manifest = engine.manifest
    built_for = manifest.built_for
    kinds = f" ({', '.join(built_for.compute_capabilities)})" if built_for.compute_capabilities else ""
    facts = [
        ("engine", engine.path),
        ("graph", manifest.graph),
        ("runs in", f"{manifest.target} {manifest.version}"),
        ("on", f"{built_for.device}{kinds}, {built_for.platform}"),
        *(("profile", profile) for profile in manifest.profiles),
        *(("option", f"{key}={value}") for key, value in manifest.options.items()),
        *(("file", f"{record.file}, {record.size / 1e6:.1f} MB") for record in manifest.files),
        *((key.replace("_", " "), _in_words(value)) for key, value in manifest.facts.items() if value and key != FACT),
        *([] if (made := Products.read(manifest.facts)) is None else [(FACT, made)]),
    ]
    return tabulate(facts, tablefmt="plain", disable_numparse=True)


def _in_words(fact: Any) -> str:
    """A fact from a build as one line."""
    if isinstance(fact, dict):
        return ", ".join(f"{key}: {_in_words(value)}" for key, value in fact.items())
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def describe_target_options(name: str) -> str:
    """The options of a target's builds, as text."""
    rows = describe_options(get_target(name).options)
    more = (get_target(name).options.__doc__ or "").strip()
    return f"{more}\n\n{tabulate(rows, ('option', 'default', ''), disable_numparse=True)}"


def describe_parity(report: ParityReport, *, worst: bool = False) -> str:
    """A parity report as text: a line for each target and batch, or with `worst` for the worst batch of each target."""
    table = console_table(case_columns(report), worst_cases(report) if worst else cases(report))
    limit = (
        f"limits: max {report.limit_max_rel:.1e}, rms {report.limit_rms_rel:.1e} = {report.factor:g} x the error of "
        f"eager PyTorch in {report.dtype} against {report.reference}"
    )
    if report.limit_kl is not None and report.limit_top1 is not None:
        limit += f"; KL {report.limit_kl:.1e}, top-1 at least {report.limit_top1:.1%}"
    lines = [table, "", limit]
    rounded = next((target.limits for target in report.targets if target.limits), None)
    if rounded is not None:
        lines.append(
            f"limits of engines with activations in 8 bits: max {rounded.max_rel:.1e}, rms {rounded.rms_rel:.1e}"
        )
    if report.ranges:
        lines.append(describe_ranges(report.ranges))
    if report.lengths_left_out:
        lines.append(f"left out as too long: {', '.join(map(str, report.lengths_left_out))}")
    lines += [line for target in report.targets for line in _notes(target)]
    if report.quantization is not None:
        lines += ["", *describe_cost(report.quantization)]
    return "\n".join(lines)


def _notes(target: TargetResult) -> Iterator[str]:
    """Lines about what a target left out, and where it differs."""
    place = target.first_difference
    if target.left_out:
        yield f"{target.name} has no optimization profile for {', '.join(target.left_out)}"
    if target.error:
        yield f"{target.name}: {target.error}"
    elif place is not None:
        sign = "<" if place.passed else ">"
        yield f"{target.name} first differs at {place.name} ({place.rms_rel:.1e} {sign} {place.limit:.1e})"
    elif not target.passed:
        yield f"{target.name} differs only at the output, at no boundary before it"


def describe_latency(report: LatencyReport) -> str:
    """A latency report as text: rows, runners without numbers, and the gate."""
    lines = [console_table(latency_columns(report), report.rows), ""]
    lines.append(f"medians of {report.rounds} interleaved calls, in {report.dtype}; 95 % bootstrap intervals")
    steps = max((row.steps for row in report.rows), default=0)
    if steps:
        lines.append(
            f"prompt: time to the first token; step: time a token, the average of {steps} after a text of that length"
        )
    lines += [f"{each.name}: {each.error}" for each in report.runners if each.error]
    lines += [f"{each.place}: no optimization profile takes it" for each in report.not_timed]
    cost = report.parity.quantization
    if not all(target.passed for target in report.parity.targets):
        lines.append("parity: FAILED")
    if cost is not None:
        lines += describe_cost(cost)
    if report.parity.lengths_left_out:
        lines.append(f"parity left out as too long: {', '.join(map(str, report.parity.lengths_left_out))}")
    if report.gate is not None:
        wanted = f"at least {report.gate.min_speedup:g} times as fast as dense in every target"
        lines += [f"FAILED: {failure}" for failure in report.gate.failures] or [f"gate: {wanted}: passed"]
    return "\n".join(lines)
