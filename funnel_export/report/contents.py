"""The contents of a report, independent of Markdown and HTML."""

from dataclasses import dataclass

from funnel_export.bundle.engine import changed_engines
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.weights import DerivedFile
from funnel_export.latency.latency_report import LatencyReport, Row, RunnerResult
from funnel_export.report import columns, numbers
from funnel_export.report.canvas import Picture
from funnel_export.report.columns import Table, page_table
from funnel_export.report.cost import describe_cost
from funnel_export.report.drawing import draw_text
from funnel_export.report.latency_panels import by_runtime, title
from funnel_export.report.pictures import draw_all
from funnel_export.spec.choices import PYTORCH
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.verify.parity_report import ParityReport, TargetResult
from funnel_export.verify.ranges import Range, describe_ranges, first_overflow

GOOD, BAD, NONE = "good", "bad", "none"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question and its answer, at the top of a report."""

    question: str
    answer: str
    status: str
    """`good`, `bad` or `none`."""
    details: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencySection:
    """The results of `bench`."""

    report: LatencyReport
    rows: Table[Row]
    runners: Table[RunnerResult]
    missing: Table[columns.Missing]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParitySection:
    """The results of `check`."""

    report: ParityReport
    limits: Table[columns.Limit]
    targets: Table[TargetResult]
    cases: Table[columns.OnTarget]
    boundaries: Table[columns.AtBoundary]
    ranges: Table[Range]
    largest: str
    """The largest value of the model, and whether float16 overflows; empty if it was not measured."""
    notes: list[str]
    """Lengths, batches and boundaries that are missing, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Everything that the templates show; all texts except `funnel_text` may come from an untrusted bundle."""

    name: str
    verdicts: list[Verdict]
    facts: list[tuple[str, str]]
    funnel_text: str
    pictures: dict[str, Picture]
    latency: LatencySection | None
    parity: ParitySection | None


def collect(bundle: Bundle, parity: ParityReport | None, latency: LatencyReport | None) -> Contents:
    """The contents of a report on a bundle; either of the two results may be missing.

    Without a result of `check`, the parity check that `bench` ran is shown.
    """
    if parity is None and latency is not None:
        parity = latency.parity
    return Contents(
        name=bundle.path.resolve().name,
        verdicts=[
            _parity_verdict(bundle, parity),
            *_cost_verdicts(bundle, parity),
            *_latency_verdicts(bundle, latency),
        ],
        facts=_facts(bundle),
        funnel_text=draw_text(bundle.segments),
        pictures=draw_all(bundle, parity, latency),
        latency=None if latency is None else _latency_section(latency),
        parity=None if parity is None else _parity_section(parity),
    )


def _latency_section(report: LatencyReport) -> LatencySection:
    return LatencySection(
        report=report,
        rows=page_table(columns.latency_columns(report), report.rows),
        runners=page_table(columns.runner_columns(report), [found for found in report.runners if not found.error]),
        missing=page_table(columns.MISSING, columns.missing(report)),
    )


def _parity_section(report: ParityReport) -> ParitySection:
    return ParitySection(
        report=report,
        limits=page_table(columns.limit_columns(report), columns.limits(report)),
        targets=page_table(columns.target_columns(report), report.targets),
        cases=page_table(columns.case_columns(report), columns.cases(report)),
        boundaries=page_table(columns.boundary_columns(report), columns.boundaries(report)),
        ranges=page_table(columns.RANGES, report.ranges),
        largest=describe_ranges(report.ranges),
        notes=_notes(report),
    )


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, spec = bundle.manifest, bundle.spec
    opset = f"opset {spec.opset}"
    graphs = [("graph", f"{g.path.name}, {opset}, sha256 {g.sha256[:12]}…") for g in bundle.graphs.values()]
    derived = [weight for weight in manifest.weights if isinstance(weight, DerivedFile)]
    return [
        ("made from", manifest.source),
        ("task", spec.task),
        ("computes in", spec.dtype),
        ("funnel", _in_words(spec.funnel)),
        ("layers", str(bundle.architecture.num_hidden_layers)),
        *graphs,
        ("weights", numbers.size(sum(weight.size for weight in manifest.weights))),
        *(("derived weights", f"{weight.file}, {numbers.size(weight.size)}: {weight.recipe}") for weight in derived),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]


def _in_words(spec: FunnelSpec | None) -> str:
    if spec is None:
        return "none (dense)"
    if spec.drop:
        return f"{spec}, {spec.recovery} recovery"
    ahead = ", lookahead" if spec.lookahead else ""
    return f"{spec}, {spec.pooling} pooling, {spec.recovery} recovery, {spec.slot_positions} slot positions{ahead}"


def _parity_verdict(bundle: Bundle, report: ParityReport | None) -> Verdict:
    question = "Parity with eager PyTorch"
    if report is None:
        return Verdict(question, "not run", NONE, ["funnel-export check"])
    count = len(report.targets)
    good = sum(target.passed for target in report.targets)
    details = [_failure(target) for target in report.targets if not target.passed]
    if details or not report.targets:
        return Verdict(question, "FAILED", BAD, details or ["no target was compared"])
    details = [f"{good} of {count} targets compute what eager PyTorch computes", *_left_out(report)]
    if first_overflow(report.ranges) is not None:
        details.append(describe_ranges(report.ranges))
    outdated = _outdated(bundle, report, "check")
    if outdated:
        return Verdict(question, "OUTDATED", BAD, outdated + details)
    return Verdict(question, "passed", GOOD, details)


def _cost_verdicts(bundle: Bundle, report: ParityReport | None) -> list[Verdict]:
    """What quantized weights cost; empty for other bundles."""
    question = f"Cost of {bundle.spec.quantization.bits} bits" if bundle.spec.quantization else ""
    cost = None if report is None else report.quantization
    if cost is None:
        hint = "funnel-export check --unquantized"
        return [Verdict(question, "not measured", NONE, [hint])] if question else []
    if not cost.passed:
        return [Verdict(question, "FAILED", BAD, cost.faults)]
    return [Verdict(question, "passed", GOOD, describe_cost(cost))]


def _left_out(report: ParityReport) -> list[str]:
    """A line about the lengths that were left out, if any."""
    lengths = ", ".join(map(str, report.lengths_left_out))
    return [f"left out as too long: {lengths}"] if lengths else []


def _outdated(bundle: Bundle, report: ParityReport, command: str) -> list[str]:
    """A line for each engine that was recompiled or removed since the report."""
    changed = changed_engines(bundle, report.engines)
    return [f"{name} was recompiled or removed since: run funnel-export {command} again" for name in changed]


def _failure(target: TargetResult) -> str:
    place = target.first_difference
    if target.error:
        return f"{target.name}: {target.error}"
    if place is None:
        return f"{target.name} differs only at the output, at no boundary before it"
    found, limit = numbers.error(place.rms_rel), numbers.error(place.limit)
    return f"{target.name} first differs at {place.name} (error {found}, limit {limit}, batch {place.case})"


def _latency_verdicts(bundle: Bundle, report: LatencyReport | None) -> list[Verdict]:
    """Verdicts on the gate, on missing measurements, and on how much faster the funnel is."""
    if report is None:
        return [Verdict("Latency", "not run", NONE, ["funnel-export bench"])]
    verdicts = []
    gate = report.gate
    if gate is None:
        verdicts.append(Verdict("Speed-up gate", "none set", NONE, ["funnel-export bench --min-speedup"]))
    else:
        wanted = f"wanted: funnel at least {gate.min_speedup:g} × as fast as dense, by the lower end of the interval"
        status, answer = (GOOD, "passed") if gate.passed else (BAD, "FAILED")
        verdicts.append(Verdict("Speed-up gate", answer, status, [wanted, *gate.failures]))
    problems = [f"{each.name}: {each.error}" for each in report.runners if each.error]
    if not report.parity.passed:
        problems.insert(0, "parity failed when latency was measured")
    outdated = _outdated(bundle, report.parity, "bench")
    if outdated:
        verdicts.append(Verdict("Engines", "OUTDATED", BAD, outdated))
    places = [f"{each.place}: no optimization profile takes it" for each in report.not_timed]
    if problems or places:
        verdicts.append(Verdict("Measurement", "INCOMPLETE", BAD if problems else NONE, problems + places))
    verdicts.append(Verdict("Funnel against dense", *_speed(report)))
    return verdicts


def _speed(report: LatencyReport) -> tuple[str, str, list[str]]:
    """The range of speedups by the medians over all shapes: for all targets together, then for each runtime."""
    speedups = {name: [row.ratio.speedup.value for row in rows] for name, rows in by_runtime(report).items()}
    if not speedups:
        return "no numbers", NONE, []
    compiled = [value for (name, _), values in speedups.items() if name not in PYTORCH for value in values]
    details = [f"{title(*group)}: {_range(values)}" for group, values in speedups.items()]
    return (f"{_range(compiled)} as fast" if compiled else "no target was timed"), NONE, details


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{low} ×" if low == high else f"{low}–{high} ×"


def _notes(report: ParityReport) -> list[str]:
    notes = _left_out(report)
    for target in report.targets:
        if target.left_out:
            notes.append(f"{target.name} has no optimization profile for {', '.join(target.left_out)}")
        if target.boundaries_missing:
            notes.append(f"{target.name} shows no boundaries: {target.boundaries_missing}")
    return notes
