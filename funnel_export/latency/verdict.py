"""From trials to a report: rows of the runners whose outputs are correct, and the gate."""

from collections.abc import Mapping, Sequence

import numpy as np

from funnel_export.bundle.load import Bundle
from funnel_export.latency.latency_report import (
    Gate,
    LatencyReport,
    Model,
    Place,
    Row,
    RunnerResult,
    compare,
    summarize,
)
from funnel_export.latency.operations import predicted_ratio
from funnel_export.latency.shape import Shape
from funnel_export.latency.traffic import predicted_step_ratio
from funnel_export.latency.trials import RunnerRecord, Times
from funnel_export.spec.choices import EAGER, PYTORCH
from funnel_export.verify.parity_report import ParityReport, TargetResult

_NO_LIMITS = "eager PyTorch itself is not finite in this dtype, or its error is too large to derive a limit"


def evaluate(
    bundle: Bundle,
    parity: ParityReport,
    records: Sequence[RunnerRecord],
    shapes: Sequence[Shape],
    conditions: Mapping[str, str],
    min_speedup: float | None,
    *,
    unbuilt: Mapping[str, str] | None = None,
) -> LatencyReport:
    """The report of the trials of a bundle and its dense baseline.

    No parity, no number: a target has no rows if it failed `check`, or if its outputs on a timed shape differ from
    those of eager PyTorch.

    Args:
        bundle: the bundle with a funnel.
        parity: the result of `check` for everything that was timed.
        records: the trials.
        shapes: requested shapes.
        conditions: processor and versions, by name.
        min_speedup: the gate; None for no gate.
        unbuilt: for each target or engine whose dense counterpart failed to compile or to agree with eager PyTorch, the
            reason.
    """
    spec = bundle.spec
    assert spec.funnel is not None
    by_name = {(record.runner.runtime, record.runner.model): record for record in records}
    results = [_judged(record, by_name, parity) for record in records] + _failed(parity)
    results += [
        RunnerResult(runtime=name, model=Model.DENSE, dtype=parity.dtype, error=why)
        for name, why in (unbuilt or {}).items()
    ]
    broken = list(dict.fromkeys(result.runtime for result in results if result.error))
    rows, not_timed = [], []
    for shape in shapes:
        for runtime in dict.fromkeys(record.runner.runtime for record in records):
            if runtime in broken:
                continue
            if all(shape in by_name[runtime, model].times for model in Model):
                rows.append(_row(bundle, by_name, runtime, shape))
            else:
                not_timed.append(Place(runtime=runtime, **shape._asdict()))
    return LatencyReport(
        conditions=dict(conditions),
        task=spec.task,
        dtype=spec.dtype,
        funnel=spec.funnel.to_dict(),
        num_layers=bundle.architecture.num_hidden_layers,
        parity=parity,
        rounds=max((row.funnel.rounds for row in rows), default=0),
        runners=results,
        rows=rows,
        not_timed=not_timed,
        gate=None if min_speedup is None else judge(rows, min_speedup, not_timed=not_timed, broken=broken),
    )


def _failed(parity: ParityReport) -> list[RunnerResult]:
    """Results of the targets that failed `check` and so were not timed."""
    results = []
    for target in parity.targets:
        if target.passed:
            continue
        results.append(
            RunnerResult(runtime=target.name, model=Model.FUNNEL, dtype=parity.dtype, error=describe_failure(target))
        )
    return results


def describe_failure(target: TargetResult) -> str:
    """Why a target that failed `check` has no number."""
    place = target.first_difference
    why = target.error or (
        f"it differs from eager PyTorch from {place.name} on" if place else "it failed the parity check"
    )
    return f"no parity, no number: {why}"


def _judged(
    record: RunnerRecord, by_name: Mapping[tuple[str, Model], RunnerRecord], parity: ParityReport
) -> RunnerResult:
    """The result of a runner, with an error if its outputs differ from those of eager PyTorch."""
    result = record.result
    if result.error is not None:
        return result
    if not parity.limits.usable:
        return result.model_copy(update={"error": f"no parity, no number: {_NO_LIMITS}"})
    eager = by_name.get((EAGER, result.model))
    if eager is None:
        error = _uncompared(record, parity)
        return result if error is None else result.model_copy(update={"error": error})
    limit = _limit(record, parity)
    for shape, times in record.times.items():
        found = _difference(times, eager.times.get(shape), limit)
        if found is not None:
            return result.model_copy(update={"error": f"no parity, no number: at {shape} {found}"})
    return result


def _uncompared(record: RunnerRecord, parity: ParityReport) -> str | None:
    """The error of a runner without an eager counterpart that was timed on a shape that `check` did not compare."""
    checked = {target.name: target for target in parity.targets}.get(record.runner.runtime)
    seen = set() if checked is None else checked.shapes
    unseen = [] if checked is None else [shape for shape in record.times if (shape.batch, shape.tokens) not in seen]
    if checked is None or not unseen:
        return None
    return (
        f"no parity, no number: nothing was compared at {' or at '.join(map(str, unseen))}. The parity check has rows "
        f"of up to {checked.longest} tokens, and leaves out batches that would not fit into memory. Use "
        "--pytorch eager, a larger --max-length, or a smaller --batch"
    )


def _limit(record: RunnerRecord, parity: ParityReport) -> float:
    """Largest relative difference of a runner's outputs from those of eager PyTorch in the bundle's dtype."""
    own = next((target.limits for target in parity.targets if target.name == record.runner.runtime), None)
    return (own or parity.limits).max_rel + parity.floor.max_rel  # eager PyTorch has the noise floor's error itself


def _difference(times: Times, eager: Times | None, limit: float) -> str | None:
    """How the outputs on a timed shape differ from those of eager PyTorch; None if they agree."""
    if eager is None:
        return "eager PyTorch has no outputs to compare with; if it cannot run, use --pytorch none"
    error = distance(times.sample, eager.sample)
    if error <= limit:
        return None
    return f"its outputs differ from eager PyTorch's by {error:.1e}, and {limit:.1e} is allowed"


def distance(sample: Sequence[float], reference: Sequence[float]) -> float:
    """Largest difference over the largest value of the reference; NaN if any value is NaN or the lengths differ."""
    one, other = np.asarray(sample), np.asarray(reference)
    if one.shape != other.shape:
        return float("nan")
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


def _row(bundle: Bundle, by_name: Mapping[tuple[str, Model], RunnerRecord], runtime: str, shape: Shape) -> Row:
    dense, funnel = (by_name[runtime, model].times[shape] for model in Model)
    eager = by_name.get((EAGER, Model.DENSE))
    baseline = None if eager is None or shape not in eager.times else eager.times[shape].seconds
    each = shape.steps or 1
    return Row(
        runtime=runtime,
        **shape._asdict(),
        dense=summarize([seconds / each for seconds in dense.seconds]),
        funnel=summarize([seconds / each for seconds in funnel.seconds]),
        ratio=compare(funnel.seconds, dense.seconds),
        predicted=_predicted(bundle, shape),
        dense_first_ms=dense.first * 1000,
        funnel_first_ms=funnel.first * 1000,
        speedup_over_eager=None if baseline is None else compare(baseline, funnel.seconds),
    )


def _predicted(bundle: Bundle, shape: Shape) -> float:
    """The ratio of funnel to dense by bytes for steps, by operations for whole texts."""
    model = bundle.family, bundle.architecture, bundle.spec
    if shape.steps:
        return predicted_step_ratio(*model, shape.length + shape.steps // 2, shape.batch)
    return predicted_ratio(*model, shape.length)


def judge(
    rows: Sequence[Row], min_speedup: float, *, not_timed: Sequence[Place] = (), broken: Sequence[str] = ()
) -> Gate:
    """Whether each target is at least `min_speedup` times as fast with the funnel, by the lower end of the interval.

    PyTorch is a baseline and is not judged. A requested shape that was not timed fails.

    Args:
        rows: the timed rows.
        min_speedup: how many times as fast each target must be with the funnel.
        not_timed: requested shapes that were not timed.
        broken: runtimes without numbers because of an error.
    """
    judged = [row for row in rows if row.runtime not in PYTORCH]
    failures = [f"{runtime} has no numbers" for runtime in broken if runtime not in PYTORCH]
    for row in judged:
        found = row.ratio.speedup
        if not found.low >= min_speedup:
            interval = f"{found.low:.3f} to {found.high:.3f}"
            failures.append(f"{row.place}: {found.value:.3f} times as fast ({interval}), wanted {min_speedup:g}")
    failures += [f"{place.place}: was not timed" for place in not_timed]
    if not judged and not failures:
        failures.append("no target was measured")
    return Gate(min_speedup=min_speedup, failures=failures)
