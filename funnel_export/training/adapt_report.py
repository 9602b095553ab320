"""The results of `adapt` as data. This module does not import torch."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.record import SCHEMA, Digest, Funnel, SchemaVersion
from funnel_export.spec.choices import Dtype, Task


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class Point(_Report):
    """What was measured after a step."""

    step: int
    training: float
    """Mean of the objective over the last steps, at most 10."""
    held_out: float | None
    """Cross entropy on held-out texts, in nats a token or label."""


class Losses(_Report):
    """Cross entropy on held-out texts, in nats a token or label."""

    dense: float | None
    """Loss of the dense model; None if there is no dense model: it has no head yet, or the weights were random."""
    before: float
    """Loss of the model with its funnel, before training."""
    after: float

    @property
    def gap_closed(self) -> float | None:
        """Share of the distance to the dense model that training closed; None without a distance."""
        if self.dense is None or self.before <= self.dense:
            return None
        return (self.before - self.after) / (self.before - self.dense)


class AdaptReport(_Report):
    """The outcome of `adapt`."""

    schema_version: SchemaVersion = SCHEMA
    checkpoint: str
    """The checkpoint that training began with, as it was named."""
    task: Task
    funnel: Funnel | None
    training: dict[str, Any]
    """The settings, as `TrainingSpec` has them."""
    rows_sha256: Digest
    """Digest of all rows, held-out ones included."""
    tokens: int
    """Different tokens that the model was trained on."""
    seen: int
    """Tokens that it was trained on, repeated ones included."""
    steps: int
    trained_weights: int
    """Numbers in the weights that were trained."""
    held_out: int
    """Tokens or labels on which the losses were measured."""
    length: int
    """Most tokens of a row."""
    dtype: Dtype
    """Dtype of matrix products."""
    device: str
    seconds: float
    """Time to train and to measure, since the last start."""
    losses: Losses
    history: list[Point]
    conditions: dict[str, str]
    """Versions of packages."""
