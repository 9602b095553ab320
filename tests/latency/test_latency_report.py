"""Medians, ratios, their intervals, and the gate."""

import numpy as np
import pytest
from pydantic import ValidationError

from funnel_export.latency.latency_report import Latency, Place, Ratio, Row, compare, summarize
from funnel_export.latency.verdict import judge

QUIET = Latency(median_ms=1.0, low_ms=1.0, high_ms=1.0, rounds=9)


def row(low: float, high: float, runtime: str = "onnxruntime") -> Row:
    """A row whose funnel/dense ratio has this interval."""
    ratio = Ratio(value=(low + high) / 2, low=low, high=high)
    first = {"dense_first_ms": 1.0, "funnel_first_ms": 1.0}
    return Row(runtime=runtime, batch=2, length=64, dense=QUIET, funnel=QUIET, ratio=ratio, predicted=0.75, **first)


def test_the_interval_covers_the_median_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        found = summarize(generator.lognormal(size=25))
        assert found.low_ms <= found.median_ms <= found.high_ms
        inside += found.low_ms <= 1000.0 <= found.high_ms  # the median of a standard log-normal is 1
    assert 180 <= inside <= 199


def test_a_disturbance_of_a_whole_round_does_not_widen_the_interval() -> None:
    generator = np.random.default_rng(1)
    weather = generator.uniform(1, 3, size=25)
    paired = compare(0.5 * weather, weather)
    assert (paired.low, paired.value, paired.high) == pytest.approx((0.5, 0.5, 0.5))
    unpaired = compare(0.5 * generator.permutation(weather), weather)
    assert unpaired.high - unpaired.low > 0.05


def test_the_interval_of_one_round_is_a_point() -> None:
    assert summarize([0.25]).model_dump() == {"median_ms": 250, "low_ms": 250, "high_ms": 250, "rounds": 1}
    assert compare([1.0], [2.0]) == Ratio(value=0.5, low=0.5, high=0.5)


def test_a_speedup_is_the_inverse_ratio() -> None:
    assert Ratio(value=0.5, low=0.4, high=0.8).speedup == Ratio(value=2.0, low=1.25, high=2.5)


def test_the_gate_uses_the_lower_end_and_names_the_place() -> None:
    assert judge([row(0.5, 0.625)], 1.6).passed
    gate = judge([row(0.5, 0.625), row(0.5, 0.63, "openvino")], 1.6)
    assert not gate.passed
    (failure,) = gate.failures
    assert failure == "openvino at batch 2, length 64: 1.770 times as fast (1.587 to 2.000), wanted 1.6"


def test_pytorch_is_not_judged_and_an_empty_result_fails() -> None:
    assert judge([row(0.5, 0.6), row(2.0, 3.0, "eager"), row(2.0, 3.0, "torch.compile")], 1.5).passed
    assert judge([row(0.1, 0.2, "eager")], 1.5).failures == ["no target was measured"]
    assert judge([row(0.5, 0.6)], 1.5, broken=["torch.compile"]).passed


def test_shapes_that_were_not_timed_fail_the_gate() -> None:
    place = Place(runtime="plan", batch=1, length=512)
    gate = judge([row(0.5, 0.6)], 1.5, not_timed=[place], broken=["openvino"])
    assert gate.failures == ["openvino has no numbers", "plan at batch 1, length 512: was not timed"]


@pytest.mark.parametrize(("value", "low"), [(float("nan"), float("nan")), (0.0, 0.0), (-1.0, -1.0), (0.7, 0.8)])
def test_impossible_ratios_are_refused(value: float, low: float) -> None:
    with pytest.raises(ValidationError):
        Ratio(value=value, low=low, high=0.9)
