"""Initializers that refer to a safetensors file."""

import onnx_ir as ir

from funnel_export.checkpoint.safetensors import StoredTensor

STORED_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
}
"""ONNX's dtypes of stored tensors, by safetensors' names."""


def reference(name: str, tensor: StoredTensor) -> ir.ExternalTensor:
    """The value of an initializer: a reference into a safetensors file in the graph's folder."""
    shape, dtype = ir.Shape(tensor.shape), STORED_DTYPES[tensor.dtype]
    return ir.ExternalTensor(tensor.file, tensor.offset, tensor.nbytes, dtype, shape=shape, name=name)


def packed_reference(name: str, tensor: StoredTensor, *, signed: bool) -> ir.ExternalTensor:
    """The same for codes of 4 bits, of which the file has two in a byte: [..., n / 2] bytes are [..., n] codes."""
    *rows, columns = tensor.shape
    dtype = ir.DataType.INT4 if signed else ir.DataType.UINT4
    shape = ir.Shape([*rows, 2 * columns])
    return ir.ExternalTensor(tensor.file, tensor.offset, tensor.nbytes, dtype, shape=shape, name=name)
