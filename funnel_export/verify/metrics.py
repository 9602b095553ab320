"""Error measures between two outputs."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from funnel_export.errors import BundleError

Array = NDArray[np.float64]


class Metrics(BaseModel):
    """Errors of a candidate against a reference, over real tokens only.

    If either is not finite, neither are `max_rel` and `rms_rel`; `cosine` and `top1` may still be finite.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    max_abs: float
    """Largest absolute difference."""
    mean_abs: float
    p999_abs: float
    """The 99.9th percentile of the absolute difference."""
    max_rel: float
    """Largest absolute difference over the reference's largest absolute value."""
    rms_rel: float
    """Root mean square of the difference over that of the reference."""
    cosine: float
    """Smallest cosine similarity of the two vectors at a position."""
    kl: float | None = None
    """Largest Kullback-Leibler divergence at a position, in nats; for logits only."""
    top1: float | None = None
    """Share of positions with the same highest logit, 0 to 1; for logits only."""


def measure(candidate: NDArray[np.floating], reference: NDArray[np.floating], *, logits: bool) -> Metrics:
    """Compare two arrays [positions, width]; with `logits`, also their KL divergence and top-1 agreement.

    Raises:
        BundleError: if their shapes differ; numpy might broadcast them.
    """
    if candidate.shape != reference.shape:
        raise BundleError("an output has the wrong shape", got=list(candidate.shape), wanted=list(reference.shape))
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite show in the result
        return _measure(candidate.astype(np.float64), reference.astype(np.float64), logits=logits)


def _measure(c: Array, r: Array, *, logits: bool) -> Metrics:
    difference = np.abs(c - r)
    norms = np.linalg.norm(c, axis=-1) * np.linalg.norm(r, axis=-1)
    cosine = np.where(norms > 0, (c * r).sum(-1) / np.where(norms > 0, norms, 1), 1.0)
    return Metrics(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        p999_abs=float(np.quantile(difference, 0.999)),
        max_rel=float(difference.max() / _scale(np.abs(r).max())),
        rms_rel=float(np.sqrt((difference**2).mean()) / _scale(np.sqrt((r**2).mean()))),
        cosine=float(cosine.min()),
        kl=float(divergences(c, r).max()) if logits else None,
        top1=float((c.argmax(-1) == r.argmax(-1)).mean()) if logits else None,
    )


def divergences(candidate: NDArray[np.floating], reference: NDArray[np.floating]) -> Array:
    """KL(reference || candidate) at each position, [positions] in nats, from logits [positions, width]."""
    with np.errstate(invalid="ignore", over="ignore"):  # the result shows values that are not finite
        p, q = _log_softmax(reference.astype(np.float64)), _log_softmax(candidate.astype(np.float64))
        result: Array = (np.exp(p) * (p - q)).sum(-1)
    return result


def _scale(value: float) -> float:
    return float(value) if value > 0 else 1.0


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
