"""Codes, scales and zero points of weights that others quantized, as arrays of NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.foreign import QUANTIZE, Packing, reordered
from funnel_export.checkpoint.foreign_tensor import WORD, ForeignTensor
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.checkpoint.values import not_finite, read_tensor
from funnel_export.errors import CheckpointError

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output of each code in a word of AWQ, from the low bits on."""
SIGN = np.uint8(0x80)
"""What turns a signed byte into an unsigned one that is larger by 128."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A quantized weight: weight = (code - zero) * scale."""

    codes: NDArray[np.uint8]
    """[inputs, outputs], 0 to 2^bits - 1."""
    scales: NDArray[Any]
    """[blocks, outputs], in the dtype in which they are stored."""
    zeros: NDArray[np.uint8]
    """[blocks, outputs], 0 to 2^bits - 1; 2^(bits-1) if symmetric."""


def unpack_foreign(folder: Path, weight: ForeignTensor) -> Unpacked:
    """The codes of a weight; nothing is rounded.

    Raises:
        CheckpointError: if its file cannot be read, or has values that its layout does not allow.
    """
    _check_shape(folder, weight)
    codes = _codes(weight, read_tensor(folder, weight.codes))
    scales = read_tensor(folder, weight.scales)
    if not np.isfinite(scales.astype(np.float32)).all():
        raise not_finite(f"scales of {weight.name}", "finite scales")
    zeros = _zeros(folder, weight)
    by_rows = weight.layout.packing in (Packing.ROWS, Packing.BYTES)
    return Unpacked(codes.T, scales.T, zeros.T) if by_rows else Unpacked(codes, scales, zeros)


def check_groups(folder: Path, weight: ForeignTensor) -> None:
    """Raise `CheckpointError` unless each group of a weight is a block of consecutive inputs."""
    if weight.groups is None:
        return
    inputs = weight.shape[1]
    found = read_tensor(folder, weight.groups)
    if not np.array_equal(found, np.arange(inputs) // (weight.layout.group_size or inputs)):
        raise reordered(f"{weight.name}: input 0 is in group {found[0]}, the last in group {found[-1]}")


def _check_shape(folder: Path, weight: ForeignTensor) -> None:
    """Raise `CheckpointError` if the file says another shape: the last word of a row may be filled up."""
    if weight.declared is None:
        return
    found = tuple(read_tensor(folder, weight.declared).tolist())
    if found != weight.shape:
        raise CheckpointError(
            "a quantized weight has another shape than its codes",
            got=f"{weight.name}: {list(found)}, and codes for {list(weight.shape)}",
            wanted="rows that fill whole words of 32 bits",
            hint=QUANTIZE,
        )


def _codes(weight: ForeignTensor, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """The codes as their file has them: [inputs, outputs] of GPTQ and AWQ, else [outputs, inputs]."""
    layout = weight.layout
    if layout.packing is Packing.BYTES:
        return stored.view(np.uint8) ^ SIGN
    if layout.packing is Packing.INPUTS:
        return spread(stored.T, layout.bits).T
    return spread(stored, layout.bits, INTERLEAVED if layout.packing is Packing.INTERLEAVED else None)


def _zeros(folder: Path, weight: ForeignTensor) -> NDArray[np.uint8]:
    """The zero points, oriented like the scales."""
    layout = weight.layout
    middle = 1 << (layout.bits - 1)
    if weight.zeros is None:
        return np.full(weight.scales.shape, middle, np.uint8)
    stored = _stored_zeros(weight, weight.zeros, read_tensor(folder, weight.zeros))
    if layout.zero_offset and not layout.symmetric and (stored == (1 << layout.bits) - 1).any():
        raise CheckpointError(
            "a zero point of GPTQ's first version is ambiguous",
            got=f"{weight.name}: {stored.max()} + 1, which programs read as {stored.max() + 1} or 0",
            wanted=f"zero points up to {(1 << layout.bits) - 1}",
            hint="save the model in the format gptq_v2, or use the original checkpoint",
        )
    zeros = stored + np.uint8(layout.zero_offset)
    if layout.symmetric and (zeros != middle).any():
        raise CheckpointError(
            "a weight has zero points, and config.json says that it is symmetric",
            got=f"{weight.name}: zero points {zeros.min()} to {zeros.max()}",
            wanted=f"the middle code, {middle}",
            hint="correct config.json: sym, zero_point or symmetric; and the format, gptq or gptq_v2",
        )
    return zeros


def _stored_zeros(weight: ForeignTensor, tensor: StoredTensor, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """The zero points before anything is added, oriented like the scales."""
    layout = weight.layout
    if tensor.dtype == "I8":
        return (stored.view(np.uint8) ^ SIGN) - np.uint8(128 - (1 << (layout.bits - 1)))
    if layout.packing is Packing.ROWS:
        return spread(stored.T, layout.bits).T[: weight.shape[0]]
    return spread(stored, layout.bits, INTERLEAVED if layout.packing is Packing.INTERLEAVED else None)


def spread(words: NDArray[np.int32], bits: int, order: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """The codes in words of 32 bits, [rows, n] to [rows, n * 32 / bits].

    Args:
        words: codes, the first in the low bits.
        bits: bits of a code.
        order: the place of each code among those of its word; by default as they come.
    """
    each = WORD // bits
    unsigned = words.view(np.uint32)
    codes = np.empty((words.shape[0], words.shape[1] * each), np.uint8)
    for index, place in enumerate(order or range(each)):
        codes[:, place::each] = (unsigned >> np.uint32(bits * index)) & np.uint32((1 << bits) - 1)
    return codes
