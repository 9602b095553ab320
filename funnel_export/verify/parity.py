"""Parity: does a target compute what eager PyTorch computes?

The reference is eager PyTorch one step more precise than the bundle: float64 for float32, float32 for 16 bits. The
*noise floor* is the error of eager PyTorch in the bundle's own dtype against the reference, over all cases of the run.
A target passes if its errors are at most a small multiple of the floor: the largest error, the root mean square, and
for logits the KL divergence and the share of positions whose highest logit differs. For an engine whose options round
the activations of products with quantized weights to 8 bits, eager PyTorch rounds them too for the floor.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.errors import FunnelExportError, SpecError, TargetRefusedError
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.defaults import FACTOR, SEED
from funnel_export.spec.funnel import boundary_names
from funnel_export.system.machine import memory_bytes
from funnel_export.verify.boundaries import (
    Inside,
    choose_case,
    compare_eager,
    look_inside,
    measure_boundaries,
    run_eager,
)
from funnel_export.verify.candidates import Candidate
from funnel_export.verify.cases import CasePlan, compared_positions
from funnel_export.verify.limits import Floor, share_of_all
from funnel_export.verify.metrics import Metrics, measure
from funnel_export.verify.parity_report import Boundary, CaseResult, Limits, ParityReport, TargetResult
from funnel_export.verify.probe import RangeProbe
from funnel_export.verify.quantization_cost import Original, measure_cost
from funnel_export.verify.ranges import FLOAT16_MAX, Range, first_overflow, magnitude
from funnel_export.verify.readers import load_reader
from funnel_export.verify.reference import REFERENCE_DTYPES, Eager


@dataclass(frozen=True, slots=True)
class _Expected:
    """Results of eager PyTorch: outputs of every case, and boundaries of some cases."""

    inputs: list[dict[PortKind, NDArray[Any]]]
    outputs: list[NDArray[Any]]
    """Outputs of the reference, one array [positions, width] for each case."""
    floor: Floor
    shown: int | None
    """Index of the case whose boundaries are reported for a target that passes."""
    insides: dict[int, Inside]
    """Boundaries by index of the case."""
    ranges: list[Range]
    """The largest values of the reference over all cases."""
    rounded: dict[int, Floor] = field(default_factory=dict)
    """Floors with activations of 8 bits, by the number of inputs that share a scale."""


def check_parity(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    plan: CasePlan,
    *,
    factor: float = FACTOR,
    seed: int = SEED,
    original: Original | None = None,
    progress: Progress,
) -> ParityReport:
    """Compare targets and engines with eager PyTorch on every case of a plan.

    A target that cannot run gets an error in the report. If eager PyTorch is not finite, every target gets one. With
    the original weights of a quantized bundle, what it computes is also compared with what they give.
    """
    inside = any(candidate.target.runs_graphs for candidate in candidates)
    expected = _expect(bundle, plan, seed, progress, inside=inside)
    dtype = bundle.spec.dtype
    limits = expected.floor.limits(dtype, factor)
    cost = None if original is None else measure_cost(bundle, original, expected.inputs, expected.outputs, progress)
    report = ParityReport(
        passed=False,
        graph_digests={role: graph.sha256 for role, graph in bundle.graphs.items()},
        weights=bundle.manifest.weights,
        engines={each.name: each.manifest.sha256 for candidate in candidates for each in candidate.engines.values()},
        dtype=dtype,
        reference=str(REFERENCE_DTYPES[dtype]).removeprefix("torch."),
        factor=factor,
        seed=seed,
        floor=limits.floor,
        limit_max_rel=limits.max_rel,
        limit_rms_rel=limits.rms_rel,
        limit_kl=limits.kl,
        limit_top1=limits.top1,
        quantization=cost,
        ranges=expected.ranges,
        lengths_left_out=list(plan.left_out),
        targets=[],
    )
    results = []
    for candidate in candidates:
        try:
            own = _limits_with_rounded_activations(bundle, candidate, expected, factor, progress)
            progress(candidate.name)
            results.append(_check_candidate(bundle, candidate, plan, expected, report, own))
        except FunnelExportError as err:  # the other targets are still compared
            refused = isinstance(err, TargetRefusedError)
            results.append(_result(candidate, passed=False, error=str(err), refused=refused))
        except Exception as err:  # noqa: BLE001 - a runtime may raise anything; only this target fails
            results.append(_result(candidate, passed=False, error=f"{type(err).__name__}: {err}"))
    return report.with_targets(results)


def _expect(bundle: Bundle, plan: CasePlan, seed: int, progress: Progress, *, inside: bool) -> _Expected:
    """Run eager PyTorch on every case, and with `inside` again on the case whose boundaries are shown.

    That is a separate run because boundaries need a patched model, and the reference of a dense bundle is not patched.
    """
    inputs = [case.tokens(bundle.architecture, seed) for case in plan.cases]
    dtype, names = bundle.spec.dtype, boundary_names(bundle.segments)
    runs: list[tuple[Mapping[PortKind, NDArray[Any]], Sequence[str]]] = [(tokens, ()) for tokens in inputs]
    shown = choose_case(plan.cases) if inside else None
    if shown is not None:
        runs.append((inputs[shown], names))
    progress(f"eager {REFERENCE_DTYPES[dtype]}".replace("torch.", ""))
    probe = RangeProbe()
    reference = run_eager(Eager(bundle, REFERENCE_DTYPES[dtype], probe), runs)
    progress(f"eager {dtype}")
    eager = run_eager(Eager(bundle, getattr(torch, dtype)), runs)
    insides = {}
    if shown is not None:
        insides[shown] = compare_eager(plan.cases[shown], inputs[shown], reference.pop(), eager.pop(), names)
    output, logits = bundle.output.name, bundle.spec.task is not Task.FEATURE_EXTRACTION
    outputs = [row[output] for row in reference]
    floor = Floor.of([row[output] for row in eager], outputs, logits=logits)
    return _Expected(inputs, outputs, floor, shown, insides, probe.ranges())


def check_memory(bundle: Bundle, plan: CasePlan) -> None:
    """Refuse a plan that needs too much memory: all outputs are kept while the models run one after the other.

    Raises:
        SpecError: if the plan does not fit; the hint names a length that does.
    """
    most, needed = _most_bytes(), _needed_bytes(bundle, plan)
    if needed > most:
        longest = max(max(case.lengths) for case in plan.cases)
        fits = int(longest * min(most / needed, (most / needed) ** 0.5) / 2)
        raise SpecError(
            "this check would not fit into memory",
            got=f"{needed / 1e9:.0f} GB for batches of up to {longest} tokens",
            wanted=f"at most {most / 1e9:.0f} GB, half of the memory available to this process",
            hint=f"--max-length {max(1, fits)}",
        )


def fits_memory(bundle: Bundle, plan: CasePlan) -> bool:
    """Whether `check_memory` accepts a plan."""
    return _needed_bytes(bundle, plan) <= _most_bytes()


def _most_bytes() -> float:
    """The memory that a check may take, in bytes: the runtimes and the models need some too."""
    return memory_bytes() / 2


def _needed_bytes(bundle: Bundle, plan: CasePlan) -> float:
    """Memory for the outputs of all cases and for attention on the largest, in bytes.

    Outputs: those of both eager models on all cases, and eight float64 arrays while the largest case is compared.
    Attention: a runtime gets the whole padded batch, and holds scores, their softcap, mask and softmax.
    """
    width = bundle.output.shape[-1]
    positions = [sum(compared_positions(bundle.spec, length) for length in case.lengths) for case in plan.cases]
    per_token = isinstance(width, int) and bundle.spec.task is not Task.TEXT_CLASSIFICATION
    outputs = 8 * int(width) * (2 * sum(positions) + 8 * max(positions)) if per_token else 0
    pairs = max(case.shape[0] * case.shape[1] ** 2 for case in plan.cases)
    return outputs + 4 * 4 * bundle.architecture.num_attention_heads * pairs


def _result(candidate: Candidate, **facts: Any) -> TargetResult:
    engine = candidate.name if candidate.engines else None
    return TargetResult.model_validate(
        {"target": candidate.target.name, "engine": engine, "device": "", "precision": "", "cases": [], **facts}
    )


def _limits_with_rounded_activations(
    bundle: Bundle, candidate: Candidate, expected: _Expected, factor: float, progress: Progress
) -> Limits | None:
    """The limits of a candidate that rounds activations; None for others."""
    group = candidate.activation_group
    if group is None or bundle.spec.quantization is None:
        return None
    if group not in expected.rounded:  # computed once for all engines
        dtype, logits = bundle.spec.dtype, bundle.spec.task is not Task.FEATURE_EXTRACTION
        progress(f"eager {dtype} with activations of 8 bits")
        model = Eager(bundle, getattr(torch, dtype), group=group)
        outputs = [row[bundle.output.name] for row in run_eager(model, [(tokens, ()) for tokens in expected.inputs])]
        expected.rounded[group] = Floor.of(outputs, expected.outputs, logits=logits)
    return expected.rounded[group].limits(bundle.spec.dtype, factor, rounded=True)


def _check_candidate(
    bundle: Bundle,
    candidate: Candidate,
    plan: CasePlan,
    expected: _Expected,
    report: ParityReport,
    own: Limits | None,
) -> TargetResult:
    limits = own or report.limits
    reader = load_reader(candidate, bundle)

    def compare(index: int) -> CaseResult:
        case, got = plan.cases[index], reader.read(plan.cases[index], expected.inputs[index])
        metrics = measure(got, expected.outputs[index], logits=limits.floor.kl is not None)
        return CaseResult(case=case.name, metrics=metrics, passed=limits.allow(metrics))

    taken = [index for index, case in enumerate(plan.cases) if candidate.takes(case.shape)]
    with contextlib.closing(reader):
        cases = {index: compare(index) for index in taken}
    failed = [index for index, case in cases.items() if not case.passed]
    top1 = share_of_all(
        [case.metrics.top1 for case in cases.values()], [len(expected.outputs[index]) for index in cases]
    )
    if not failed and top1 is not None and limits.top1 is not None and not top1 >= limits.top1:
        failed = [min(cases, key=lambda index: cases[index].metrics.top1 or 0.0)]
    result = _result(
        candidate,
        device=reader.device,
        precision=reader.precision + ("" if own is None else ", activations in 8 bits"),
        passed=bool(cases) and not failed,
        cases=list(cases.values()),
        top1=top1,
        limits=own,
        left_out=[case.name for index, case in enumerate(plan.cases) if index not in cases],
        error=None if cases else "the engine has no optimization profile for any batch of this check",
    )
    if not limits.usable:
        return result.model_copy(update={"error": _without_limits(report, limits, expected)})
    if not cases:
        return result
    metrics = {index: cases[index].metrics for index in failed}
    return result.model_copy(update=_look_into(bundle, candidate, plan, expected, report.factor, limits, metrics))


def _without_limits(report: ParityReport, limits: Limits, expected: _Expected) -> str:
    """Why no limit can be derived: a floor that is not finite or too high would let everything pass."""
    if not all(np.isfinite(output).all() for output in expected.outputs):
        return f"eager PyTorch itself is not finite in {report.reference}, so there is nothing to compare with"
    if np.isfinite(limits.rms_rel):
        rounding = "" if limits == report.limits else " with activations of 8 bits"
        return (
            f"the limit of {limits.rms_rel:.1g} on the root-mean-square error would let zeros pass: "
            f"the error of eager PyTorch in {report.dtype}{rounding} is {limits.floor.rms_rel:.1g}, "
            f"and the factor is {report.factor:g}"
        )
    floors = [item for inside in expected.insides.values() for item in inside.floors.items()]
    place = next((f" from {name} on" for name, floor in floors if not np.isfinite(floor)), "")
    first = first_overflow(expected.ranges) if report.dtype is Dtype.FLOAT16 else None
    if first is not None:
        value, most = magnitude(first.peak), magnitude(FLOAT16_MAX)
        place = f" from {first.name} on, where {report.reference} has {value} and float16 at most {most}"
    other = "; export in bfloat16" if report.dtype is Dtype.FLOAT16 else ""
    return f"eager PyTorch itself is not finite in {report.dtype}{place}, so no limit can be derived from it{other}"


def _look_into(
    bundle: Bundle,
    candidate: Candidate,
    plan: CasePlan,
    expected: _Expected,
    factor: float,
    limits: Limits,
    failed: Mapping[int, Metrics],
) -> dict[str, Any]:
    """The fields of a result about boundaries. A target that passed still passes if it has no boundaries."""
    if not failed and not candidate.target.runs_graphs:
        return {"boundaries_missing": "the engine does not output inner values; one that does is built only on failure"}
    index = next(iter(failed), expected.shown)
    if index is None:
        return {"boundaries_missing": "no batch of this check is short enough"}
    if index not in expected.insides:  # computed once for all targets
        expected.insides[index] = look_inside(bundle, plan.cases[index], expected.inputs[index])
    try:
        found = locate(bundle, candidate, expected.insides[index], factor)
    except (FunnelExportError, KeyError) as err:  # a broken graph may lack the boundaries
        why = f"the graph has no {err}" if isinstance(err, KeyError) else str(err)
        error = {"error": f"differs from eager PyTorch; the first boundary could not be found: {why}"} if failed else {}
        return {"boundaries_missing": why, **error}
    first = _first_difference(found, failed[index], limits) if failed else None
    return {"boundaries": found, "first_difference": first}


def _first_difference(found: Sequence[Boundary], output: Metrics, limits: Limits) -> Boundary | None:
    """The first boundary beyond its limit; None if only the output differs.

    In 16 bits a wrong constant may exceed only the limits of logits; then half the limit of a boundary counts too.
    """
    subtle = output.max_rel <= limits.max_rel and output.rms_rel <= limits.rms_rel
    for share in (1.0, 0.5) if subtle else (1.0,):
        for place in found:
            if not place.rms_rel <= share * place.limit < math.inf:
                return place
    return None


def locate(bundle: Bundle, candidate: Candidate, inside: Inside, factor: float) -> list[Boundary]:
    """The errors of a target at each boundary of a case, in order.

    The engines of ONNX Runtime and OpenVINO no longer have the names of the boundaries, so the bundle's graph is run
    instead. For TensorRT another engine is built that outputs them.
    """
    with contextlib.closing(load_reader(candidate, bundle, inside=True)) as reader:
        return measure_boundaries(reader, inside, bundle, factor)
