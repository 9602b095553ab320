"""Quantization by loops, from the definition alone: what the tests compare the package with."""

import numpy as np

FLOAT32 = np.dtype(np.float32)


def dequantized(
    weight: np.ndarray, bits: int, block: int | None, *, symmetric: bool, dtype: np.dtype = FLOAT32
) -> np.ndarray:
    """A weight [outputs, inputs] after rounding to the nearest code of each block."""
    result = np.empty(weight.shape, np.float32)
    size = block or weight.shape[1]
    for output in range(weight.shape[0]):
        for first in range(0, weight.shape[1], size):
            values = weight[output, first : first + size].astype(np.float64)
            result[output, first : first + size] = _block(values, bits, symmetric=symmetric, dtype=dtype)
    return result


def _block(values: np.ndarray, bits: int, *, symmetric: bool, dtype: np.dtype) -> list[float]:
    if symmetric:
        lowest, highest = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
        span = max(abs(values))
    else:
        lowest, highest = 0, 2**bits - 1
        span = max(values.max(), 0.0) - min(values.min(), 0.0)
    scale = float(np.float32(np.float32(span) / np.float32(highest)).astype(dtype))
    if scale == 0.0:
        return [0.0] * len(values)
    zero = 0 if symmetric else min(highest, max(0, round(-min(values.min(), 0.0) / scale)))
    found = []
    for value in values:
        code = min(highest, max(lowest, int(np.rint(np.float32(value) / np.float32(scale))) + zero))
        found.append(float(np.float32(code - zero) * np.float32(scale)))
    return [float(np.float32(each).astype(dtype)) for each in found]
