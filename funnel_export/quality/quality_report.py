"""The results of `evaluate` as data. This module does not import torch."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from funnel_export.bundle.record import SCHEMA, Digest, Funnel, Role, SchemaVersion
from funnel_export.bundle.weights import WeightRecords
from funnel_export.spec.choices import Task

Count = Annotated[int, Field(ge=0)]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measure(_Report):
    """A value with its 95 % bootstrap interval over documents."""

    value: float
    low: float | None = None
    """Lower end of the interval; None if fewer than two documents count."""
    high: float | None = None

    @model_validator(mode="after")
    def _encloses(self) -> Self:
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not between {self.low} and {self.high}")
        return self


class ModelMeasures(_Report):
    """How well a model predicts the tokens or the labels."""

    loss: Measure
    """Cross entropy, in nats for each scored token or label."""
    accuracy: Measure
    """Share of the scored tokens whose highest logit is the right one, 0 to 1."""
    perplexity: Measure | None = None
    """exp(loss); for language models."""
    bits_per_byte: Measure | None = None
    """Cross entropy in bits for each byte of the text in UTF-8; for language models."""
    macro_f1: Measure | None = None
    """Mean of the F1 scores of all labels that occur; for classifiers."""
    span_f1: Measure | None = None
    """F1 score of whole spans, for labels that mark spans, as seqeval counts them."""


class Distance(_Report):
    """A model against a dense model; differences are those of paired documents."""

    loss: Measure
    """Loss of the model less that of the dense model."""
    accuracy: Measure
    """Accuracy of the model less that of the dense model; the F1 scores likewise."""
    macro_f1: Measure | None = None
    span_f1: Measure | None = None
    kl: Measure
    """Mean KL(dense || model) of the scored tokens, in nats."""
    top1: Measure
    """Share of the scored tokens at which both models have the same highest logit, 0 to 1."""


class Group(_Report):
    """The scored tokens of one phase, or of a range of positions."""

    first: Count
    """The phase, or the first position."""
    last: Count
    scored: Count
    documents: Count
    """Documents that have such tokens."""
    loss: Measure
    over_dense: Measure | None = None
    """Difference of the losses; None without a dense model."""
    kl: Measure | None = None
    top1: Measure | None = None


class QualityReport(_Report):
    """The outcome of `evaluate`."""

    schema_version: SchemaVersion = SCHEMA
    model: str
    """The checkpoint or bundle, as it was named."""
    task: Task
    funnel: Funnel | None
    runtime: str
    """`eager` for PyTorch, or the name of a target or engine."""
    device: str
    precision: str
    graph_digests: dict[Role, Digest] = {}
    """Digest of each graph of a bundle, by role."""
    weights: WeightRecords | None = None
    """The weight files of a bundle."""
    data: list[str]
    """Places of the documents, as they were named."""
    rows_sha256: Digest
    """Digest of the rows: reports of the same rows can be compared."""
    length: Count
    """Most tokens of a row."""
    documents: Count
    skipped: Count
    """Documents without tokens."""
    cut: Count
    """Documents of which only the beginning counts."""
    scored: Count
    """Tokens that were predicted, or labels."""
    size: Count
    """Bytes of the scored tokens in UTF-8; 0 for classifiers."""
    seed: int
    """Seed of the draws of documents for the intervals."""
    measures: ModelMeasures
    dense: ModelMeasures | None = None
    """Measures of the dense model that it is compared with, in eager PyTorch."""
    against: str | None = None
    """The checkpoint of the dense model, as it was named; None if it has the same weights."""
    distance: Distance | None = None
    by_phase: list[Group] = []
    """Scores by the index of the predicting token in its row, modulo the stride; empty if the stride is 1."""
    by_position: list[Group] = []
    """Scores by the number of tokens that the prediction has seen in its row, in ranges that double."""
    seconds: float
    """Time to load and run the models."""
    peak_memory_bytes: Count
    """Largest resident memory of this process."""
    conditions: dict[str, str]
    """Processor and versions."""
