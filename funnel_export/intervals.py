"""Bootstrap intervals: of times over the rounds of a benchmark, of losses over the documents of an evaluation."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
LARGEST = 1 << 23
"""Most values that are drawn at once."""


def interval(
    statistic: Callable[..., Any], samples: Sequence[NDArray[np.float64]], seed: int = 0
) -> tuple[float, float, float]:
    """Lower end, value and upper end of a percentile bootstrap interval; all equal for a single observation.

    Args:
        statistic: takes the samples and `axis`, along which it reduces them.
        samples: arrays [observations] of the same length; their observations are drawn together.
        seed: seed of the draws.
    """
    from scipy.stats import bootstrap

    value = float(statistic(*samples, axis=-1))
    count = len(samples[0])
    if count < 2:
        return value, value, value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns if all observations are equal
        found = bootstrap(
            tuple(samples),
            statistic,
            paired=len(samples) > 1,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, LARGEST // (count * len(samples))),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return min(float(found.low), value), value, max(float(found.high), value)
