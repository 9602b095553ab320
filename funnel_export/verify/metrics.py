"""How far two outputs are apart."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from funnel_export.errors import BundleError

Array = NDArray[np.float64]


class Metrics(BaseModel):
    """Distance of a candidate from a reference, over real tokens only.

    Where either is not finite, `max_rel` and `rms_rel` are not finite either; `cosine` and `top1` may not show it.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    max_abs: float
    """Largest absolute difference."""
    mean_abs: float
    p999_abs: float
    """Absolute difference that 99.9 % of the values stay below."""
    max_rel: float
    """Largest absolute difference over the reference's largest absolute value."""
    rms_rel: float
    """Root mean square of the difference over that of the reference."""
    cosine: float
    """Smallest cosine between the vectors of one position."""
    kl: float | None = None
    """Largest Kullback-Leibler divergence of one position's distribution, in nats; for logits."""
    top1: float | None = None
    """Share of positions with the same highest logit."""


def measure(candidate: NDArray[np.floating], reference: NDArray[np.floating], *, logits: bool) -> Metrics:
    """Compare two arrays [positions, width]; `logits` adds what only distributions have.

    Raises:
        BundleError: if they have different shapes, which numpy would compare all the same.
    """
    if candidate.shape != reference.shape:
        raise BundleError("an output has another shape", got=list(candidate.shape), wanted=list(reference.shape))
    with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite, which the result shows
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
    """KL(reference || candidate) at each position, [positions] in nats, of logits [positions, width]."""
    p, q = _log_softmax(reference.astype(np.float64)), _log_softmax(candidate.astype(np.float64))
    result: Array = (np.exp(p) * (p - q)).sum(-1)
    return result


def _scale(value: float) -> float:
    return float(value) if value > 0 else 1.0


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
