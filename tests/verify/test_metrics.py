"""Error measures, on cases small enough to check by hand."""

import numpy as np
import pytest

from funnel_export.verify.metrics import measure


def test_no_difference() -> None:
    x = np.random.default_rng(0).normal(size=(4, 9))
    m = measure(x, x, logits=True)
    assert (m.max_abs, m.mean_abs, m.rms_rel, m.kl, m.top1) == (0, 0, 0, 0, 1)
    assert m.cosine == pytest.approx(1)


def test_by_hand() -> None:
    reference, candidate = np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([[3.0, 4.0], [5.0, 0.0]])
    m = measure(candidate, reference, logits=True)
    assert m.max_abs == 5
    assert m.mean_abs == 2.5
    assert m.max_rel == 1
    assert m.rms_rel == pytest.approx(1)
    assert m.cosine == 0
    assert m.top1 == 0.5
    p = np.exp(5) / (1 + np.exp(5))
    assert m.kl == pytest.approx((2 * p - 1) * 5)


def test_one_value_in_a_thousand_may_exceed_the_quantile() -> None:
    reference = np.zeros((1, 1001))
    assert measure(np.arange(1001.0)[None], reference, logits=False).p999_abs == pytest.approx(999)


def test_nan_is_not_a_small_error() -> None:
    reference = np.ones((2, 3))
    candidate = reference.copy()
    candidate[1, 2] = np.nan
    m = measure(candidate, reference, logits=False)
    assert not m.max_rel <= 1e9
    assert not m.rms_rel <= 1e9
