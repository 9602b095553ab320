"""Quantized weights in a safetensors file: how they are stored.

A weight of a product is stored as its transpose, [inputs, outputs], which is how ONNX multiplies with it:

    NAME.codes       8 bits: I8, or U8 if asymmetric, [inputs, outputs]
                     4 bits: U8 [inputs, outputs / 2], the first of two codes in the low bits
    NAME.scales      [inputs / block size, outputs], or [outputs] if a scale is for all inputs
    NAME.zeros       zero points, U8 with the shape of the scales, in 4 bits two in a byte; only if asymmetric

An embedding is stored by rows, as the gather reads it:

    NAME.row_codes   I8 [tokens, width]
    NAME.row_scales  [tokens, 1]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from funnel_export.checkpoint.safetensors import CODE_SIZES, DTYPE_SIZES, StoredTensor
from funnel_export.errors import CheckpointError

QUANTIZED = "quantized.safetensors"
"""The file of a quantized checkpoint. Hugging Face, which cannot read it, looks for other names."""
METHOD = "funnel_export"
"""`quant_method` in `config.json`."""
CODES, SCALES, ZEROS, ROW_CODES, ROW_SCALES = SUFFIXES = (".codes", ".scales", ".zeros", ".row_codes", ".row_scales")
"""What follows a weight's name in the names of its tensors."""


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A quantized weight: its tensors in the file."""

    codes: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    by_rows: bool
    """Whether it is an embedding that is stored by rows."""

    @property
    def bits(self) -> int:
        """Bits of a weight, 8 or 4."""
        return 8 if self.by_rows or self.codes.shape[1] == self.scales.shape[-1] else 4

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight in PyTorch, [outputs, inputs] or [tokens, width]."""
        rows, columns = self.codes.shape
        return (rows, columns) if self.by_rows else (self.scales.shape[-1], rows)

    @property
    def block_size(self) -> int | None:
        """Inputs that share a scale; None if a scale is for all of them."""
        return None if self.by_rows or len(self.scales.shape) == 1 else self.codes.shape[0] // self.scales.shape[0]

    def fault(self) -> str | None:
        """What is wrong with the shapes and dtypes of its tensors, None if they fit each other."""
        known, width = DTYPE_SIZES | CODE_SIZES, self.scales.shape[-1:]
        found = f"codes {self.codes.dtype} {list(self.codes.shape)}, scales {list(self.scales.shape)}"
        sizes = (each for each in (self.codes, self.scales, self.zeros) if each)
        if len(self.codes.shape) != 2 or 0 in self.codes.shape or self.scales.dtype not in DTYPE_SIZES:
            return f"{found} {self.scales.dtype}"
        if any(each.nbytes != prod(each.shape) * known.get(each.dtype, 0) for each in sizes):
            return f"{found}, and sizes in bytes that are not those"
        if self.by_rows:
            return None if (self.codes.dtype, self.scales.shape) == ("I8", (self.codes.shape[0], 1)) else found
        rows, columns = self.codes.shape
        outputs = width[0] if width else 0
        signed = self.zeros is None
        if columns == outputs:
            expected, zeros = ("I8" if signed else "U8"), self.scales.shape
        elif 2 * columns == outputs:
            expected, zeros = "U8", (*self.scales.shape[:-1], columns)
        else:
            return found
        if self.codes.dtype != expected or (self.zeros and (self.zeros.dtype, self.zeros.shape) != ("U8", zeros)):
            return found
        blocks = self.scales.shape[0] if len(self.scales.shape) == 2 else 1
        return None if len(self.scales.shape) in (1, 2) and blocks and rows % blocks == 0 else found


def bare_of(name: str) -> str:
    """The weight that a stored tensor belongs to: its name, without what `SUFFIXES` add."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def quantized_tensor(tensors: Mapping[str, StoredTensor], name: str) -> QuantizedTensor | None:
    """The quantized weight of a name among stored tensors, None if there is none.

    Raises:
        CheckpointError: if a tensor of it is missing, or has another shape or dtype than the others need.
    """
    parts = {suffix: tensors[name + suffix] for suffix in SUFFIXES if name + suffix in tensors}
    if not parts:
        return None
    by_rows = ROW_CODES in parts
    codes, scales = (ROW_CODES, ROW_SCALES) if by_rows else (CODES, SCALES)
    if {codes, scales} <= parts.keys() <= ({codes, scales} if by_rows else {codes, scales, ZEROS}):
        found = QuantizedTensor(parts[codes], parts[scales], parts.get(ZEROS), by_rows)
        fault = found.fault()
        if fault is None:
            return found
    else:
        fault = ", ".join(sorted(parts))
    raise CheckpointError(
        "a quantized weight is not stored as this version of funnel_export stores it",
        got=f"{name}: {fault}",
        wanted="codes, scales and zero points that fit each other",
        hint="quantize the original model again",
    )
