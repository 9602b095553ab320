"""Latency of several models side by side: interleaved, warmed up, medians."""

import time
from collections.abc import Callable, Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict


class Latency(BaseModel):
    """Wall-clock time of one call."""

    model_config = ConfigDict(frozen=True)

    median_ms: float
    low_ms: float
    """A quarter of the calls were faster."""
    high_ms: float
    """A quarter of the calls were slower."""
    rounds: int


def measure_latency(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 2
) -> dict[str, Latency]:
    """Time each call once per round, so that whatever else the machine does falls on all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: list[float]) -> Latency:
    low, median, high = (float(q) * 1000 for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(median_ms=median, low_ms=low, high_ms=high, rounds=len(seconds))
