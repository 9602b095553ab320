"""The results of `check` as data: `reports/parity.json`. This module does not import torch."""

import math
import re
from collections.abc import Collection
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from funnel_export.bundle.engine import EngineName
from funnel_export.bundle.record import SCHEMA, Digest, Role, SchemaVersion
from funnel_export.bundle.weights import WeightRecords
from funnel_export.spec.choices import Dtype
from funnel_export.verify.metrics import Metrics
from funnel_export.verify.quantization_report import QuantizationCost
from funnel_export.verify.ranges import Range


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Limits(_Report):
    """What the errors of a target may be, and the floor that they are derived from."""

    floor: Metrics
    """The largest errors of eager PyTorch over all cases."""
    max_rel: float
    rms_rel: float
    kl: float | None = None
    """Limit of the KL divergence at each position, in nats; for logits only."""
    top1: float | None = None
    """The least share of all positions that must have the reference's highest logit; for logits only."""

    @property
    def usable(self) -> bool:
        """Whether they are finite, and an output of zeros (relative rms error 1) would not pass."""
        return all(map(math.isfinite, (self.max_rel, self.rms_rel, self.kl or 0.0))) and self.rms_rel < 1

    def allow(self, metrics: Metrics) -> bool:
        """Whether these errors are within the limits; NaN is not, and within unusable limits nothing is."""
        near = metrics.max_rel <= self.max_rel and metrics.rms_rel <= self.rms_rel
        alike = self.kl is None or (metrics.kl is not None and metrics.kl <= self.kl)
        return self.usable and near and alike


class Boundary(_Report):
    """The error of a target at one place inside the model."""

    name: str
    """`layers.3`, `funnel.pooled` or `funnel.recovered`."""
    case: str
    rms_rel: float
    """Root mean square of the difference over that of the reference."""
    limit: float
    floor: float | None = None
    """The error of eager PyTorch in the bundle's dtype at this boundary."""

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; NaN is not."""
        return self.rms_rel <= self.limit < math.inf


class CaseResult(_Report):
    """One batch on one target."""

    case: str
    metrics: Metrics
    passed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and tokens of the longest row; zeros for a name that is none of a batch."""
        found = re.match(r"(\d{1,9})x(\d{1,9})", self.case)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return self.shape[1]


class TargetResult(_Report):
    """One target on all batches, with the bundle's graph or with an engine."""

    target: str
    engine: str | None = None
    """Name of the engine, None for the bundle's graph."""
    device: str
    precision: str
    passed: bool
    cases: list[CaseResult]
    top1: float | None = None
    """Share of all positions that have the reference's highest logit, 0 to 1; for logits only."""
    limits: Limits | None = None
    """Limits of an engine that rounds activations to 8 bits, as its options say; others have those of the report."""
    left_out: list[str] = []
    """Batches for which the engine has no optimization profile."""
    boundaries: list[Boundary] = []
    """On the first batch that failed, or else on a short one; for some engines measured in the bundle's graph."""
    boundaries_missing: str | None = None
    """Why there are no boundaries."""
    first_difference: Boundary | None = None
    """The first boundary beyond its limit, or beyond half of it if there is none, if the target did not pass."""
    error: str | None = None
    """Why the target could not run or be compared."""
    refused: bool = False
    """Whether the target refused the graph."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row in the compared batches."""
        return max((case.length for case in self.cases), default=0)

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """Numbers of rows and tokens of the compared batches."""
        return {case.shape for case in self.cases}

    @property
    def name(self) -> str:
        """The engine's name, or the target's."""
        return self.engine or self.target


class ParityReport(_Report):
    """The outcome of `check`."""

    schema_version: SchemaVersion = SCHEMA
    passed: bool
    graph_digests: Annotated[dict[Role, Digest], Field(min_length=1)]
    """Digest of each compared graph, by role."""
    weights: WeightRecords
    engines: dict[EngineName, Digest]
    """Digest of each compared engine's manifest, by the engine's name."""
    dtype: Dtype
    reference: str
    """Dtype of the eager PyTorch model that is the reference."""
    factor: float
    seed: int
    floor: Metrics
    """The largest errors of eager PyTorch in the bundle's dtype over all cases."""
    limit_max_rel: float
    limit_rms_rel: float
    limit_kl: float | None = None
    """Limit of the KL divergence at each position, in nats; for logits only."""
    limit_top1: float | None = None
    """The least share of all positions that must have the reference's highest logit; for logits only."""
    quantization: QuantizationCost | None = None
    """What quantized weights cost; None for a bundle without them, or if the original ones were not given."""
    ranges: list[Range] = []
    """The largest values of the reference, in the order of computation; empty in reports of earlier versions."""
    lengths_left_out: list[int]
    targets: list[TargetResult]

    @property
    def limits(self) -> Limits:
        """The limits of targets that do not round activations."""
        return Limits(
            floor=self.floor,
            max_rel=self.limit_max_rel,
            rms_rel=self.limit_rms_rel,
            kl=self.limit_kl,
            top1=self.limit_top1,
        )

    def limits_of(self, target: TargetResult) -> Limits:
        """The limits of a target."""
        return target.limits or self.limits

    @property
    def refused(self) -> bool:
        """Whether a target refused the graph."""
        return any(target.refused for target in self.targets)

    def only(self, names: Collection[str]) -> Self:
        """The report for only these targets and engines."""
        engines = {name: digest for name, digest in self.engines.items() if name in names}
        targets = [target for target in self.targets if target.name in names]
        return self.model_copy(update={"engines": engines}).with_targets(targets)

    def with_targets(self, targets: list[TargetResult]) -> Self:
        """The report with these results; it passes if all of them do, and quantized weights do not cost too much."""
        computed = bool(targets) and all(target.passed for target in targets)
        passed = computed and (self.quantization is None or self.quantization.passed)
        return self.model_copy(update={"targets": targets, "passed": passed})
