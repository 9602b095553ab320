"""What `bench` found, as data: medians and ratios with bootstrap intervals. No torch is imported here."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from funnel_export.bundle.record import SCHEMA, Funnel, SchemaVersion
from funnel_export.spec.choices import TORCH_COMPILE, Dtype, Task
from funnel_export.verify.parity_report import ParityReport

CONFIDENCE = 0.95
RESAMPLES = 2000
Measured = Annotated[float, Field(ge=1e-9, le=1e9)]
"""Milliseconds, or a ratio of them: no clock shows others."""
Count = Annotated[int, Field(gt=0, le=1 << 20)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Interval(_Report, ABC):
    @model_validator(mode="after")
    def _encloses(self) -> Self:
        low, value, high = self.ends
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return self

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float, float]:
        """Lower end, value, upper end."""


class Model(StrEnum):
    """Which of the two models."""

    DENSE = "dense"
    FUNNEL = "funnel"


class Latency(_Interval):
    """Wall-clock time of one call."""

    median_ms: Measured
    low_ms: Measured
    """Lower end of the 95 % bootstrap interval of the median."""
    high_ms: Measured
    rounds: Count

    @property
    def ends(self) -> tuple[float, float, float]:
        """See `_Interval.ends`."""
        return self.low_ms, self.median_ms, self.high_ms


class Ratio(_Interval):
    """Median of one over median of another, of interleaved calls."""

    value: Measured
    low: Measured
    """Lower end of the 95 % bootstrap interval; rounds are drawn in pairs."""
    high: Measured

    @property
    def ends(self) -> tuple[float, float, float]:
        """See `_Interval.ends`."""
        return self.low, self.value, self.high

    @property
    def speedup(self) -> "Ratio":
        """The ratio the other way round: how many times as fast."""
        return Ratio(value=1 / self.value, low=1 / self.high, high=1 / self.low)


class Memory(_Report):
    """The most that a runner's process held, weights and runtime included."""

    host_bytes: Bytes
    device_bytes: Bytes | None = None
    """What the device's memory had less when all shapes had run; None where there is no GPU."""


class RunnerResult(_Report):
    """One model in one runtime, in a process of its own."""

    runtime: str
    """`eager`, `torch.compile`, a target or an engine."""
    model: Model
    dtype: Dtype
    device: str = ""
    precision: str = ""
    load_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    memory: Memory | None = None
    error: str | None = None
    """Why it has no numbers, if it has none."""

    @property
    def name(self) -> str:
        """For example `openvino, funnel`."""
        return f"{self.runtime}, {self.model}"


class Place(_Report):
    """One runtime on one shape."""

    runtime: str
    batch: Count
    length: Count

    @property
    def place(self) -> str:
        """For example `openvino at batch 1, length 512`."""
        return f"{self.runtime} at batch {self.batch}, length {self.length}"


class Row(Place):
    """Dense and funnel in one runtime on one shape."""

    dense: Latency
    funnel: Latency
    ratio: Ratio
    """Latency of the funnel over that of the dense model."""
    predicted: Measured
    """The same ratio in operations."""
    dense_first_ms: Measured
    """The first call on this shape, which may compile or allocate."""
    funnel_first_ms: Measured
    speedup_over_eager: Ratio | None = None
    """How many times as fast the funnel is as the dense model in eager PyTorch, where that ran."""

    def tokens_per_second(self, latency: Latency) -> float:
        """Tokens of the prompts that go through in a second."""
        return 1000 * self.batch * self.length / latency.median_ms


class Gate(_Report):
    """What was demanded, and where it was not met."""

    min_speedup: float
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Whether every target met it on every shape."""
        return not self.failures


class LatencyReport(_Report):
    """The outcome of `bench`."""

    schema_version: SchemaVersion = SCHEMA
    conditions: dict[str, str]
    task: Task
    dtype: Dtype
    funnel: Funnel
    num_layers: Count
    parity: ParityReport
    """What was checked before; a target or engine that did not pass has no rows."""
    rounds: Annotated[int, Field(ge=0, le=1 << 20)]
    runners: list[RunnerResult]
    rows: list[Row]
    not_timed: list[Place] = []
    """Shapes that were asked for, and for which an engine has no optimization profile."""
    gate: Gate | None = None

    @property
    def passed(self) -> bool:
        """Whether parity holds, everything ran but torch.compile, which is a baseline, and the gate, if any, is met."""
        ran = not any(runner.error for runner in self.runners if runner.runtime != TORCH_COMPILE)
        return self.parity.passed and ran and (self.gate is None or self.gate.passed)


def summarize(seconds: Sequence[float]) -> Latency:
    """Median of some calls with its interval."""
    low, value, high = _interval(np.median, (np.asarray(seconds),))
    return Latency(median_ms=value * 1000, low_ms=low * 1000, high_ms=high * 1000, rounds=len(seconds))


def compare(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """Median of `one` over that of `other`, of interleaved calls: what disturbed a round disturbed both."""
    low, value, high = _interval(_ratio_of_medians, (np.asarray(one), np.asarray(other)))
    return Ratio(value=value, low=low, high=high)


def _ratio_of_medians(one: NDArray[np.float64], other: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.median(one, axis=axis) / np.median(other, axis=axis)
    return ratio


def _interval(statistic: Callable[..., Any], samples: tuple[NDArray[np.float64], ...]) -> tuple[float, float, float]:
    """Percentile bootstrap interval, and what it is of in the middle; of a single round it is that round."""
    from scipy.stats import bootstrap

    value = float(statistic(*samples))
    if len(samples[0]) < 2:
        return value, value, value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples that are all equal
        found = bootstrap(
            samples,
            statistic,
            paired=len(samples) > 1,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return min(float(found.low), value), value, max(float(found.high), value)
