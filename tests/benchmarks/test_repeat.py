"""A repeated bench: which rows agree, and the verdict over them."""

from typing import Any

import pytest
import repeat


def row(length: int, low: float, high: float) -> dict[str, Any]:
    """A row whose ratio has this interval; its medians are the same in every run."""
    latency = {"median_ms": 10.0, "low_ms": 9.0, "high_ms": 11.0}
    name = {"runtime": "openvino", "batch": 1, "length": length, "predicted": 0.75}
    return name | {"ratio": {"value": low, "low": low, "high": high}, "dense": latency, "funnel": latency}


def test_intervals_overlap_where_they_have_a_point_in_common() -> None:
    assert repeat.compare(row(8, 0.7, 0.8), row(8, 0.8, 0.9))["ratio"]["overlap"]
    assert not repeat.compare(row(8, 0.7, 0.8), row(8, 0.81, 0.9))["ratio"]["overlap"]
    with pytest.raises(ValueError, match="other rows"):
        repeat.compare(row(8, 0.7, 0.8), row(9, 0.7, 0.8))


@pytest.mark.parametrize(
    ("apart", "verdict"), [(1, "9 of 10 rows, at least 90%: met"), (2, "8 of 10 rows, at least 90%: MISSED")]
)
def test_verdict(apart: int, verdict: str) -> None:
    rows = [repeat.compare(row(n, 0.7, 0.8), row(n, 0.9 if n < apart else 0.75, 0.95)) for n in range(10)]
    text = repeat.render({"rows": rows})
    assert verdict in text
    assert text.count("| NO ") == apart
    assert "medians do in 20 of 20" in text


def test_no_rows_meet_nothing() -> None:
    assert "0 of 0 rows, at least 90%: MISSED" in repeat.render({"rows": []})
