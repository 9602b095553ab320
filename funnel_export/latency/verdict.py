"""What the trials mean: rows of dense and funnel, without those that do not compute the same, and the gate."""

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
from funnel_export.latency.trials import RunnerRecord, Times
from funnel_export.spec.choices import EAGER, PYTORCH
from funnel_export.verify.parity_report import ParityReport

Shape = tuple[int, int]
_NO_LIMITS = "eager PyTorch itself is not finite in this dtype, or too far off for a limit"


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
    """The report of the trials of a bundle and its dense baseline; `unbuilt` are engines without a baseline, and why.

    No parity, no number: a target that did not pass `check` has no rows, nor has one whose outputs on a timed shape are
    not those of eager PyTorch.
    """
    spec = bundle.spec
    assert spec.funnel is not None
    by_name = {(record.runner.runtime, record.runner.model): record for record in records}
    results = [_judged(record, by_name, parity) for record in records] + _failed(parity)
    results += [
        RunnerResult(runtime=name, model=Model.DENSE, dtype=parity.dtype, error=f"it could not be built: {why}")
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
                not_timed.append(Place(runtime=runtime, batch=shape[0], length=shape[1]))
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
    """What did not pass `check`, and did not run for that."""
    results = []
    for target in parity.targets:
        if target.passed:
            continue
        place = target.first_difference
        why = target.error or (
            f"it differs from eager PyTorch from {place.name} on" if place else "it failed its check"
        )
        results.append(
            RunnerResult(
                runtime=target.name, model=Model.FUNNEL, dtype=parity.dtype, error=f"no parity, no number: {why}"
            )
        )
    return results


def _judged(
    record: RunnerRecord, by_name: Mapping[tuple[str, Model], RunnerRecord], parity: ParityReport
) -> RunnerResult:
    """The result of a runner, with an error if what was timed is not what eager PyTorch computes."""
    result = record.result
    if result.error is not None:
        return result
    if not parity.has_limits:
        return result.model_copy(update={"error": f"no parity, no number: {_NO_LIMITS}"})
    eager = by_name.get((EAGER, result.model))
    if eager is None:
        error = _uncompared(record, parity)
        return result if error is None else result.model_copy(update={"error": error})
    for shape, times in record.times.items():
        found = _difference(times, eager.times.get(shape), parity)
        if found is not None:
            where = f"at batch {shape[0]}, length {shape[1]}"
            return result.model_copy(update={"error": f"no parity, no number: {where} {found}"})
    return result


def _uncompared(record: RunnerRecord, parity: ParityReport) -> str | None:
    """Where nothing was compared: no eager run beside it, and a shape that `check` did not see."""
    checked = {target.name: target.longest for target in parity.targets}.get(record.runner.runtime)
    unseen = [] if checked is None else [shape for shape in record.times if shape[1] > checked]
    if not unseen:
        return None
    lengths = ", ".join(str(length) for length in sorted({shape[1] for shape in unseen}))
    return (
        f"no parity, no number: nothing was compared at length {lengths}; check went up to {checked}. "
        "Use a larger --max-length, or --pytorch eager"
    )


def _difference(times: Times, eager: Times | None, parity: ParityReport) -> str | None:
    """What keeps outputs on a timed shape from being those of eager PyTorch, if anything does."""
    if eager is None:
        return "eager PyTorch has no outputs to compare with; where it cannot run, time without it"
    limit = parity.limit_max_rel + parity.floor.max_rel  # eager PyTorch itself is off by its noise floor
    error = distance(times.sample, eager.sample)
    if error <= limit:
        return None
    return f"its outputs are {error:.1e} off eager PyTorch's, and {limit:.1e} is allowed"


def distance(sample: Sequence[float], reference: Sequence[float]) -> float:
    """Largest difference over the largest value of the reference; NaN if anything is."""
    one, other = np.asarray(sample), np.asarray(reference)
    if one.shape != other.shape:
        return float("nan")
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


def _row(bundle: Bundle, by_name: Mapping[tuple[str, Model], RunnerRecord], runtime: str, shape: Shape) -> Row:
    dense, funnel = (by_name[runtime, model].times[shape] for model in Model)
    eager = by_name.get((EAGER, Model.DENSE))
    baseline = None if eager is None or shape not in eager.times else eager.times[shape].seconds
    return Row(
        runtime=runtime,
        batch=shape[0],
        length=shape[1],
        dense=summarize(dense.seconds),
        funnel=summarize(funnel.seconds),
        ratio=compare(funnel.seconds, dense.seconds),
        predicted=predicted_ratio(bundle.family, bundle.architecture, bundle.spec, shape[1]),
        dense_first_ms=dense.first * 1000,
        funnel_first_ms=funnel.first * 1000,
        speedup_over_eager=None if baseline is None else compare(baseline, funnel.seconds),
    )


def judge(
    rows: Sequence[Row], min_speedup: float, *, not_timed: Sequence[Place] = (), broken: Sequence[str] = ()
) -> Gate:
    """Whether each target is at least so many times as fast with the funnel: by the lower end of the interval.

    PyTorch is a baseline and is not judged. What was not timed is not known to be fast enough, and so fails.

    Args:
        rows: what was timed.
        min_speedup: what is wanted.
        not_timed: what was to be timed, and was not.
        broken: runtimes without any numbers because something went wrong.
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
