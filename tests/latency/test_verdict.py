"""The report of trials: its rows, and how the gate treats missing ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from exported import Recipe
from latencies import RUNTIMES, make_parity, make_row

from funnel_export import Bundle
from funnel_export.latency.latency_report import LatencyReport, Model, RunnerResult
from funnel_export.latency.shape import Shape
from funnel_export.latency.trials import Runner, RunnerRecord, Times
from funnel_export.latency.verdict import evaluate, judge
from funnel_export.report.text import describe_latency
from funnel_export.verify.parity_report import ParityReport

SHAPES = [Shape(1, 7), Shape(1, 20)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A bundle with a funnel."""
    return Recipe().bundle()


def outcome(
    bundle: Bundle,
    shapes: Mapping[str, Sequence[Shape]],
    *,
    parity: ParityReport | None = None,
    samples: Mapping[tuple[str, Model], float] | None = None,
    died: str | None = None,
    min_speedup: float | None = None,
) -> LatencyReport:
    """The report of trials in which every call took one second, dense and funnel alike.

    Args:
        bundle: the timed bundle.
        shapes: the shapes that each runtime was timed on.
        parity: the parity report; by default everything passed.
        samples: outputs of runners; by default 1.
        died: a runtime whose process died.
        min_speedup: the gate.
    """
    records = []
    for runtime, taken in shapes.items():
        for model in Model:
            names: dict[str, Any] = {"runtime": runtime, "model": model, "dtype": bundle.spec.dtype}
            output = (samples or {}).get((runtime, model), 1.0)
            times = {shape: Times(first=1.0, sample=[output], seconds=[1.0] * 6) for shape in taken if runtime != died}
            result = RunnerResult(**names, error="its process died" if runtime == died else None)
            records.append(RunnerRecord(Runner(request={}, **names), result, times))
    return evaluate(bundle, parity or make_parity(bundle), records, SHAPES, {}, min_speedup)


def seeing(bundle: Bundle, cases: Sequence[str]) -> ParityReport:
    """A parity report whose targets were compared on these batches."""
    parity = make_parity(bundle)
    (case,) = parity.targets[0].cases
    made = [case.model_copy(update={"case": name}) for name in cases]
    return parity.with_targets([target.model_copy(update={"cases": made}) for target in parity.targets])


def everyone(**others: Sequence[Shape]) -> dict[str, Sequence[Shape]]:
    """All shapes for every runtime, and the given shapes for the named ones."""
    return dict.fromkeys(RUNTIMES, SHAPES) | others


def test_every_runtime_on_every_shape(bundle: Bundle) -> None:
    report = outcome(bundle, everyone(), min_speedup=0.9)
    assert [row.place for row in report.rows] == [
        f"{runtime} at batch 1, length {length}" for length in (7, 20) for runtime in RUNTIMES
    ]
    assert report.passed
    assert report.rounds == 6
    assert "gate: at least 0.9 times as fast as dense in every target: passed" in describe_latency(report)


@pytest.mark.parametrize("taken", [[], [Shape(1, 7)]], ids=["none", "one of two"])
def test_an_engine_that_lacks_a_shape_fails_the_gate(bundle: Bundle, taken: list[Shape]) -> None:
    missing = [f"plan at batch {each.batch}, length {each.length}" for each in SHAPES if each not in taken]
    report = outcome(bundle, everyone(plan=taken), min_speedup=0.9)
    assert report.gate is not None
    assert report.gate.failures == [f"{place}: was not timed" for place in missing]
    assert not report.passed
    told = describe_latency(report)
    assert all(f"{place}: no optimization profile takes it" in told for place in missing)
    assert "passed" not in told
    without = outcome(bundle, everyone(plan=taken))
    assert [place.place for place in without.not_timed] == missing
    assert without.passed


def test_the_gate_uses_the_lower_end_of_the_interval() -> None:
    row = make_row("openvino", 1, 64, dense=10.0)
    found = row.ratio.speedup
    assert found.low < found.value
    assert judge([row], found.low).passed
    gate = judge([row], (found.low + found.value) / 2)
    assert not gate.passed
    assert gate.failures[0].startswith("openvino at batch 1, length 64: 1.3")
    assert not judge([], 1.0).passed


def test_the_gate_fails_if_a_target_failed_parity(bundle: Bundle) -> None:
    parity = make_parity(bundle)
    targets = [each.model_copy(update={"passed": each.name != "openvino"}) for each in parity.targets]
    parity = parity.model_copy(update={"targets": targets, "passed": False})
    shapes = {name: taken for name, taken in everyone().items() if name != "openvino"}
    report = outcome(bundle, shapes, parity=parity, min_speedup=0.9)
    assert report.gate is not None
    assert report.gate.failures == ["openvino has no numbers"]
    told = describe_latency(report)
    assert "FAILED: openvino has no numbers" in told
    assert "openvino, funnel: no parity, no number: it failed the parity check" in told
    assert "passed" not in told


def test_wrong_outputs_on_a_timed_shape_have_no_number(bundle: Bundle) -> None:
    report = outcome(bundle, everyone(), samples={("openvino", Model.FUNNEL): 1.1}, min_speedup=0.9)
    assert {row.runtime for row in report.rows} == {"eager", "onnxruntime"}
    assert report.gate is not None
    assert report.gate.failures == ["openvino has no numbers"]
    (error,) = [each.error for each in report.runners if each.error]
    assert error == (
        "no parity, no number: at batch 1, length 7 its outputs differ from eager PyTorch's by 1.0e-01, "
        "and 5.0e-04 is allowed"
    )


def test_nothing_has_a_number_if_eager_was_requested_and_failed(bundle: Bundle) -> None:
    """The outputs of the other runtimes were not compared with anything."""
    report = outcome(bundle, everyone(), died="eager", min_speedup=0.9)
    assert report.rows == []
    assert not report.passed
    errors = {each.runtime: each.error for each in report.runners}
    assert str(errors["openvino"]).startswith("no parity, no number: at batch 1, length 7 eager PyTorch has no outputs")
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime has no numbers", "openvino has no numbers"]
    seen = seeing(bundle, [f"{shape.batch}x{shape.length}" for shape in SHAPES])
    without = outcome(bundle, dict.fromkeys(RUNTIMES[1:], SHAPES), parity=seen, min_speedup=0.9)
    assert without.passed


def test_nothing_has_a_number_if_eager_overflows(bundle: Bundle) -> None:
    """An infinite limit would allow any output."""
    parity = make_parity(bundle, limit_max_rel=float("inf"))
    report = outcome(bundle, everyone(), parity=parity, min_speedup=0.9)
    assert report.rows == []
    assert not report.passed
    assert len(report.runners) == 6
    assert all("eager PyTorch itself is not finite" in str(each.error) for each in report.runners)
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime has no numbers", "openvino has no numbers"]


def test_without_eager_a_shape_that_the_check_has_not_has_no_number(bundle: Bundle) -> None:
    """In onnxruntime, `check` compared one row of 7 tokens, and two of 20; one row of 20 is unknown."""
    one, other = seeing(bundle, ["1x7", "2x20 left 1,20"]), seeing(bundle, ["1x7", "1x20", "1x64"])
    parity = other.with_targets([one.targets[0], other.targets[1]])
    report = outcome(bundle, dict.fromkeys(RUNTIMES[1:], SHAPES), parity=parity)
    errors = {runner.runtime: runner.error for runner in report.runners}
    assert errors["openvino"] is None
    assert "nothing was compared at batch 1, length 20. The parity check has rows of up to 20 tokens" in str(
        errors["onnxruntime"]
    )
