"""Bootstrap intervals: reproducible, paired, and as wide as they should be."""

import numpy as np
import pytest

from funnel_export import intervals
from funnel_export.intervals import interval


def ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
    return numerators.sum(axis) / denominators.sum(axis)


def test_the_mean_of_normal_values_has_the_interval_that_theory_gives() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=400)
    low, value, high = interval(np.mean, [values])
    half = 1.96 * values.std() / 20
    assert value == values.mean()
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.05 * half)


def test_a_ratio_of_sums_is_covered_about_95_times_in_100() -> None:
    """Long documents count more: the loss of a token is 2 in them and 3 in short ones, 2.25 on average."""
    generator, inside = np.random.default_rng(1), 0
    for _ in range(200):
        lengths = generator.choice([10, 30], size=60)
        sums = lengths * np.where(lengths == 30, 2, 3) + generator.normal(size=60)
        low, value, high = interval(ratio, [sums, lengths.astype(float)])
        assert low <= value <= high
        inside += low <= 2.25 <= high
    assert 180 <= inside <= 199


def test_equal_observations_have_an_interval_without_width() -> None:
    assert interval(ratio, [np.full(7, 12.0), np.full(7, 4.0)]) == (3.0, 3.0, 3.0)
    assert interval(np.mean, [np.array([4.0])]) == (4.0, 4.0, 4.0)


def test_the_seed_decides_and_parts_of_the_draws_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    found = interval(np.mean, [values])
    assert interval(np.mean, [values]) == found
    assert interval(np.mean, [values], seed=1) != found
    monkeypatch.setattr(intervals, "LARGEST", 50 * 64)
    assert interval(np.mean, [values]) == pytest.approx(found, abs=0.05)
