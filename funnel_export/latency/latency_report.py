"""The results of `bench` as data: medians and ratios with bootstrap intervals. This module does not import torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from funnel_export.bundle.record import SCHEMA, Funnel, SchemaVersion
from funnel_export.intervals import interval
from funnel_export.latency.shape import Shape
from funnel_export.spec.choices import TORCH_COMPILE, Dtype, Task
from funnel_export.verify.parity_report import ParityReport

Measured = Annotated[float, Field(ge=1e-9, le=1e9)]
"""Milliseconds or a ratio of them, within a plausible range."""
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
    """The dense model or the one with a funnel."""

    DENSE = "dense"
    FUNNEL = "funnel"


class Latency(_Interval):
    """Wall-clock time of one call or step, in milliseconds."""

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
    """Ratio of the medians of two runners whose calls were interleaved."""

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
        """The inverse ratio: how many times as fast."""
        return Ratio(value=1 / self.value, low=1 / self.high, high=1 / self.low)


class Memory(_Report):
    """Peak memory of a runner's process, including weights and runtime."""

    host_bytes: Bytes
    device_bytes: Bytes | None = None
    """Device memory that the runner had taken once all shapes had run; None without a GPU."""


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
    cache_bytes_per_token: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """Memory of the caches for a token of one row; None without caches, and for PyTorch's."""
    error: str | None = None
    """Why it has no numbers."""

    @property
    def name(self) -> str:
        """For example `openvino, funnel`."""
        return f"{self.runtime}, {self.model}"


class Place(_Report):
    """One runtime on one shape."""

    runtime: str
    batch: Count
    length: Count
    """Tokens of each row, or tokens before the steps."""
    steps: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Tokens of each row that a call generates, 0 if it reads whole texts."""

    @property
    def shape(self) -> Shape:
        """The shape."""
        return Shape(self.batch, self.length, self.steps)

    @property
    def place(self) -> str:
        """For example `openvino at batch 1, length 512`."""
        return f"{self.runtime} at {self.shape}"


class Row(Place):
    """Dense and funnel in one runtime on one shape.

    The latencies are those of a call; of a call with steps, those of one step, the average over the call.
    """

    dense: Latency
    funnel: Latency
    ratio: Ratio
    """Latency of the funnel over that of the dense model."""
    predicted: Measured
    """The ratio of the numbers of operations, or for steps that of the bytes that are read."""
    dense_first_ms: Measured
    """Time of the first call on this shape, which may compile or allocate; with steps, of the text before them too."""
    funnel_first_ms: Measured
    speedup_over_eager: Ratio | None = None
    """How many times as fast the funnel is as the dense model in eager PyTorch; None if that did not run."""

    def tokens_per_second(self, latency: Latency) -> float:
        """Input tokens processed per second, or for steps, tokens generated per second."""
        return 1000 * self.batch * (1 if self.steps else self.length) / latency.median_ms


class Gate(_Report):
    """The minimum speedup, and where it was not met."""

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
    """The parity check before the trials; a target or engine that failed it has no rows."""
    rounds: Annotated[int, Field(ge=0, le=1 << 20)]
    runners: list[RunnerResult]
    rows: list[Row]
    not_timed: list[Place] = []
    """Requested shapes for which an engine has no optimization profile."""
    gate: Gate | None = None

    @property
    def generates(self) -> bool:
        """Whether prompts and the steps after them were timed, instead of single passes."""
        return self.task.has_past

    def phase(self, place: Place) -> str:
        """`prompt` or `step` if the bundle generates text, otherwise empty."""
        if not self.generates:
            return ""
        return "step" if place.steps else "prompt"

    @property
    def passed(self) -> bool:
        """Whether parity and the gate passed and no runner failed; torch.compile may fail, being only a baseline."""
        ran = not any(runner.error for runner in self.runners if runner.runtime != TORCH_COMPILE)
        return self.parity.passed and ran and (self.gate is None or self.gate.passed)


def summarize(seconds: Sequence[float]) -> Latency:
    """The median of call times in seconds, with its interval."""
    low, value, high = interval(np.median, (np.asarray(seconds),))
    return Latency(median_ms=value * 1000, low_ms=low * 1000, high_ms=high * 1000, rounds=len(seconds))


def compare(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """The median of `one` over that of `other`, with its interval.

    Rounds are resampled in pairs, since a disturbance of a round affects both calls.
    """
    low, value, high = interval(_ratio_of_medians, (np.asarray(one), np.asarray(other)))
    return Ratio(value=value, low=low, high=high)


def _ratio_of_medians(one: NDArray[np.float64], other: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.median(one, axis=axis) / np.median(other, axis=axis)
    return ratio
