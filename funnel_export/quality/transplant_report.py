"""The results of `transplant` as data. This module does not import torch."""

from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.record import SCHEMA, Funnel, SchemaVersion


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class Distance(_Report):
    """How much a checkpoint differs from the base model: norms of differences over norms of the base's values."""

    matrices: float
    """Distance of all weights with two or more dimensions together; the limit applies to it."""
    vectors: float | None
    """Distance of all other weights together: norms and biases. None if only the base model's are zero."""
    changed: int
    """Weights that differ."""
    largest: float
    """The largest relative distance of a single weight; weights that are zero in the base model have none."""
    largest_weight: str | None
    """The name of that weight; None if no weight differs."""


class TransplantReport(_Report):
    """The outcome of `transplant`."""

    schema_version: SchemaVersion = SCHEMA
    adapted: str
    """The adapted checkpoint, as it was named."""
    base: str
    """The base model, as it was named."""
    instruct: str
    """The instruct model, as it was named."""
    funnel: Funnel
    weights: int
    """Tensors that were added up."""
    copied: int
    """Tensors of the adapted checkpoint that were copied, such as maps of recovery `linear`."""
    adapted_from_base: Distance
    instruct_from_base: Distance
    """Its `changed` is also the number of tensors that the adapted checkpoint and the new one differ in."""
