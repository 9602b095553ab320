"""The results of `fit` as data. This module does not import torch."""

from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.record import SCHEMA, Digest, Funnel, SchemaVersion
from funnel_export.spec.choices import Dtype


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class MapReport(_Report):
    """How the map of a class of tokens was fitted."""

    tokens: int
    """Tokens that it was fitted to."""
    ridge: float
    """Strength of the ridge, as a share of each input's own sum of squares."""
    error: float
    """Squared error of the hidden states on held-out tokens, as a share of the error without the map."""


class Losses(_Report):
    """Cross entropy on the held-out tokens, in nats a token."""

    dense: float
    before: float
    """Loss with the funnel and new maps, which is that of recovery `delta` or of dropped layers."""
    fitted: float


class FitReport(_Report):
    """The outcome of `fit`."""

    schema_version: SchemaVersion = SCHEMA
    checkpoint: str
    """The dense checkpoint, as it was named."""
    funnel: Funnel
    rows_sha256: Digest
    """Digest of all rows."""
    tokens: int
    """Tokens that the maps were fitted to."""
    held_out: int
    """Tokens on which the strength of the ridge was chosen and the losses were measured."""
    length: int
    """Most tokens of a row."""
    dtype: Dtype
    """Dtype in which PyTorch ran the model."""
    maps: dict[str, MapReport]
    """Reports of the maps by the class of tokens."""
    losses: Losses | None
    """Losses of language models; None for others."""
