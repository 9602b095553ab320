"""Values of stored weights, as arrays of NumPy; quantized ones are computed from their codes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.quantized import QuantizedTensor
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.errors import CheckpointError
from funnel_export.system.files import open_regular

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
"""NumPy's dtypes of weights and codes, by safetensors' names; the last two are those of others' codes."""


def read_values(folder: Path, weight: StoredTensor | QuantizedTensor) -> NDArray[np.float32]:
    """A weight's values in the shape of PyTorch; raises `CheckpointError` if its file cannot be read."""
    if isinstance(weight, QuantizedTensor):
        return _dequantized(folder, weight)
    return read_tensor(folder, weight).astype(np.float32)


def _dequantized(folder: Path, weight: QuantizedTensor) -> NDArray[np.float32]:
    """The weights (code - zero point) * scale, rounded to the dtype of the scales, in the shape of PyTorch."""
    scales = read_tensor(folder, weight.scales)
    codes = _whole(weight, read_tensor(folder, weight.codes))
    if weight.zeros is not None:
        block = weight.block_size or codes.shape[0]
        zeros = _whole(weight, read_tensor(folder, weight.zeros)).reshape(-1, codes.shape[1])
        codes = codes - np.repeat(zeros, block, axis=0)
    wide = scales.astype(np.float32)
    if weight.block_size is not None:
        wide = np.repeat(wide, weight.block_size, axis=0)
    found = (codes.astype(np.float32) * wide).astype(scales.dtype).astype(np.float32)
    return found if weight.by_rows else np.ascontiguousarray(found.T)


def _whole(weight: QuantizedTensor, stored: NDArray[Any]) -> NDArray[np.int16]:
    """Codes or zero points, one in each element."""
    if weight.bits == 8:
        return stored.astype(np.int16)
    return unpack(stored, signed=weight.zeros is None).astype(np.int16)


def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Two codes of 4 bits in each byte, [..., n] to [..., n / 2], the first in the low bits."""
    low, high = (codes[..., first::2].astype(np.uint8) & np.uint8(15) for first in (0, 1))
    packed: NDArray[np.uint8] = low | (high << np.uint8(4))
    return packed


def unpack(packed: NDArray[np.uint8], *, signed: bool) -> NDArray[np.int8]:
    """The codes of 4 bits that `pack` put into bytes, [..., n / 2] to [..., n]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.int8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return np.where(codes > 7, codes - 16, codes).astype(np.int8) if signed else codes


def read_tensor(folder: Path, tensor: StoredTensor) -> NDArray[Any]:
    """A tensor's values; raises `CheckpointError` if its file cannot be read."""
    try:
        with open_regular(folder / tensor.file) as stream:
            stream.seek(tensor.offset)
            content = read_exactly(stream, tensor.nbytes, folder / tensor.file)
        return np.frombuffer(content, NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)
    except (OSError, ValueError) as err:
        raise CheckpointError("a weight cannot be read", got=err, wanted=folder / tensor.file) from err


def read_exactly(stream: BinaryIO, size: int, path: Path) -> bytes:
    """The next bytes of a weight file; raises `CheckpointError` if it has fewer."""
    content = stream.read(size)
    if len(content) < size:
        raise CheckpointError(
            "a weight file became shorter while it was read",
            got=path,
            wanted="a file that nobody changes",
            hint="run it again when the download or copy is complete",
        )
    return content


def not_finite(got: str, wanted: str) -> CheckpointError:
    """The error for weights that are infinite or not numbers."""
    return CheckpointError("a weight has values that are infinite or not numbers", got=got, wanted=wanted)
