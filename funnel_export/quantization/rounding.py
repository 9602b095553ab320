"""Rounds weights to codes of a few bits, with a scale and perhaps a zero point for each block."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.values import not_finite


@dataclass(frozen=True, slots=True)
class Rounded:
    """Quantized weights: weight ≈ (code - zero) * scale."""

    codes: NDArray[np.int16]
    """[outputs, inputs]."""
    scales: NDArray[Any]
    """[outputs, blocks], positive, in the dtype in which they are stored."""
    zeros: NDArray[np.int16]
    """Zero points, [outputs, blocks]; 0 if symmetric."""

    def values(self) -> NDArray[np.float32]:
        """The weights that are stored, [outputs, inputs], rounded to the dtype of the scales."""
        blocks = self.codes.reshape(*self.scales.shape, -1) - self.zeros[..., None]
        values = (blocks * self.scales.astype(np.float32)[..., None]).astype(self.scales.dtype)
        return values.astype(np.float32).reshape(self.codes.shape)


def as_stored(scales: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Scales in the dtype in which they are stored; at least its smallest normal number."""
    smallest = np.finfo(np.float16).tiny if dtype == np.float16 else np.finfo(np.float32).tiny
    return np.maximum(scales, smallest).astype(dtype)


def round_to_nearest(
    weights: NDArray[np.float32], bits: int, block_size: int, dtype: np.dtype[Any], *, symmetric: bool
) -> Rounded:
    """Round each weight to the nearest code; the largest weight of a block gets the largest code.

    Scales are rounded to their dtype before the codes are chosen, so that the codes fit the scales that are stored.

    Args:
        weights: [outputs, inputs].
        bits: bits of a code.
        block_size: inputs that share a scale; divides them.
        dtype: dtype of the scales.
        symmetric: codes are -(2^(bits-1) - 1) to 2^(bits-1) - 1 and zero points 0; else 0 to 2^bits - 1.

    Raises:
        CheckpointError: if a weight is infinite or not a number.
    """
    blocks = weights.reshape(len(weights), -1, block_size)
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise not_finite("no finite range", "finite weights")
    largest = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    span = np.maximum(high, -low) if symmetric else np.maximum(high, 0) - np.minimum(low, 0)
    scales = as_stored(span / largest, dtype)
    wide = scales.astype(np.float32)
    zeros = np.zeros_like(wide) if symmetric else np.clip(np.rint(-np.minimum(low, 0) / wide), 0, largest)
    codes = np.rint(blocks / wide[..., None]) + zeros[..., None]
    codes = np.clip(codes, -largest if symmetric else 0, largest)
    return Rounded(codes.astype(np.int16).reshape(weights.shape), scales, zeros.astype(np.int16))
