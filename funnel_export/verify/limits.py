"""Limits of errors, derived from the noise floor: the errors of eager PyTorch in the bundle's own dtype."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from funnel_export.spec.choices import Dtype
from funnel_export.verify.metrics import Metrics, divergences, measure
from funnel_export.verify.parity_report import Limits

SMALLEST_KL = 1e-12
"""In nats; smaller divergences of float64 logits are rounding errors."""
FALSE_ALARMS = 1e-4
"""Accepted probability that a correct graph exceeds the limit of the divergence by chance."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The errors of eager PyTorch in the bundle's dtype, over all cases."""

    worst: Metrics
    """The worst of each measure."""
    divergences: NDArray[Any] | None
    """Divergences at each position of all cases; None for outputs that are not logits."""
    top1: float | None
    """Share of all positions that have the reference's highest logit; None for outputs that are not logits."""
    positions: int

    @classmethod
    def of(cls, found: Sequence[NDArray[Any]], reference: Sequence[NDArray[Any]], *, logits: bool) -> "Floor":
        """The floor from the outputs of each case, [positions, width], and those of the reference."""
        metrics = [measure(one, other, logits=logits) for one, other in zip(found, reference, strict=True)]
        counts = [len(output) for output in reference]
        kl = None
        if logits:
            kl = np.concatenate([divergences(one, other) for one, other in zip(found, reference, strict=True)])
        return cls(worst_of(metrics), kl, share_of_all([each.top1 for each in metrics], counts), sum(counts))

    def limits(self, dtype: Dtype, factor: float, *, rounded: bool = False) -> Limits:
        """What a target may differ by: `factor` times this floor.

        Args:
            dtype: the bundle's dtype.
            factor: how many times the floor's error is allowed.
            rounded: whether this is the floor with activations of 8 bits; see `limit_kl`.
        """
        return Limits(
            floor=self.worst,
            max_rel=factor * self.worst.max_rel,
            rms_rel=factor * self.worst.rms_rel,
            kl=limit_kl(self.divergences, factor, squared=dtype is Dtype.FLOAT32 and not rounded),
            top1=None if self.top1 is None else limit_top1(self.top1, self.positions, factor),
        )


def limit_kl(floors: NDArray[Any] | None, factor: float, *, squared: bool) -> float | None:
    """The largest KL divergence that a position may have, in nats, from the divergences of the floor.

    A divergence grows with the square of the error, so in float32 its limit is `factor` squared times the floor. In 16
    bits, and with activations of 8 bits, it is `factor` times the floor: the square would let a wrong constant pass,
    and correct graphs stay near the floor.

    If a few positions make up most of the floor, as with one class per text, the floor itself is uncertain. The limit
    is then raised to a quantile of the ratio of two such estimates: an F distribution whose degrees of freedom are the
    effective number of positions (their participation ratio).

    Args:
        floors: divergences of the floor at each position, [positions]; None for outputs that are not logits.
        factor: how many times the floor's error is allowed.
        squared: whether the limit is `factor` squared times the floor.
    """
    if floors is None:
        return None
    floors = np.maximum(floors, SMALLEST_KL)  # keeps NaN
    effective = floors.sum() ** 2 / (floors**2).sum()
    chance = float(fdtri(effective, effective, 1 - FALSE_ALARMS))
    return float(floors.max()) * max(factor**2 if squared else factor, chance)


def limit_top1(top1: float, positions: int, factor: float) -> float:
    """The least share of positions that must keep their highest logit.

    `factor` times as many as the floor's may change, and four more, since near ties may fall either way.
    """
    return max(0.0, 1 - factor * (1 - top1) - 4 / positions)


def share_of_all(shares: Sequence[float | None], positions: Sequence[int]) -> float | None:
    """The share over all cases, weighted by their positions; None for outputs that are not logits."""
    known = [(share, count) for share, count in zip(shares, positions, strict=True) if share is not None]
    return sum(share * count for share, count in known) / sum(count for _, count in known) if known else None


def worst_of(metrics: Sequence[Metrics]) -> Metrics:
    """The worst of each measure over all cases; NaN is worse than anything."""
    worst = {}
    for name in Metrics.model_fields:
        values = [getattr(m, name) for m in metrics if getattr(m, name) is not None]
        if values:  # numpy's min and max propagate NaN
            worst[name] = float(np.min(values) if name in ("cosine", "top1") else np.max(values))
    return Metrics(**worst)
