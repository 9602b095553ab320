"""Quantized weights in a graph: DequantizeLinear before a product, a scale for each gathered row of an embedding.

Runtimes look for these forms: ONNX Runtime makes a product with weights in few bits of the first (MatMulNBits),
OpenVINO and TensorRT read compressed weights.
"""

import onnx_ir as ir

from funnel_export.checkpoint.quantized import (
    CODES,
    ROW_CODES,
    ROW_SCALES,
    SCALES,
    ZEROS,
    QuantizedTensor,
)
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.errors import ExportError
from funnel_export.exporter.reference import packed_reference, reference


def dequantize(model: ir.Model, value: ir.Value, weight: QuantizedTensor) -> dict[str, StoredTensor]:
    """Compute a parameter from its codes wherever the graph uses it.

    Args:
        model: the graph.
        value: the parameter, no longer an input of the graph.
        weight: its tensors.

    Returns:
        The tensors of the new initializers, by name.

    Raises:
        ExportError: if the graph uses the parameter in another way than its layout is for.
    """
    name, uses = str(value.name), list(value.uses())
    wanted = "Gather" if weight.by_rows else "Transpose"
    strange = [use.node.op_type for use in uses if use.node.op_type != wanted or use.idx != 0]
    if strange or not uses:
        raise ExportError(f"the graph uses the quantized {name} in {strange or 'no node'}, not in a {wanted}")
    return _rows(model, value, weight) if weight.by_rows else _product(model, value, weight)


def _product(model: ir.Model, value: ir.Value, weight: QuantizedTensor) -> dict[str, StoredTensor]:
    """Put DequantizeLinear in place of each transpose: the codes are stored transposed."""
    name = str(value.name)
    stored = {name + CODES: weight.codes, name + SCALES: weight.scales}
    if weight.zeros is not None:
        stored[name + ZEROS] = weight.zeros
    inputs = [_initializer(model, each, tensor, weight) for each, tensor in stored.items()]
    blocked = weight.block_size is not None
    attributes = {"axis": 0, "block_size": weight.block_size} if blocked else {"axis": 1}
    node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"weights/DequantizeLinear.{name}")
    _name(node, f"weights/{name}", inputs[1].dtype)
    for use in list(value.uses()):
        transposed = use.node.outputs[0]
        ir.convenience.replace_all_uses_with(transposed, node.outputs[0])
        model.graph.remove(use.node, safe=True)
    model.graph.insert_before(model.graph[0], node)
    return stored


def _rows(model: ir.Model, value: ir.Value, weight: QuantizedTensor) -> dict[str, StoredTensor]:
    """Gather codes and scales in place of rows, and multiply them."""
    name = str(value.name)
    stored = {name + ROW_CODES: weight.codes, name + ROW_SCALES: weight.scales}
    codes, scales = (_initializer(model, each, tensor, weight) for each, tensor in stored.items())
    for use in list(value.uses()):
        gather, prefix = use.node, str(use.node.name).partition("/")[0]
        rows = gather.outputs[0]
        parts = [
            ir.node("Gather", [each, gather.inputs[1]], attributes={"axis": 0}, name=f"{prefix}/Gather.{each.name}")
            for each in (codes, scales)
        ]
        for part, taken in zip(parts, (codes, scales), strict=True):
            _name(part, f"weights/{taken.name}", taken.dtype)
        cast = ir.node(
            "Cast", [parts[0].outputs[0]], attributes={"to": scales.dtype}, name=f"{prefix}/Cast.{codes.name}"
        )
        _name(cast, f"weights/{codes.name}.cast", scales.dtype)
        product = ir.node("Mul", [cast.outputs[0], parts[1].outputs[0]], name=f"{prefix}/Mul.{name}")
        _name(product, f"weights/{name}", scales.dtype)
        ir.convenience.replace_all_uses_with(rows, product.outputs[0])
        model.graph.insert_before(gather, [*parts, cast, product])
        model.graph.remove(gather, safe=True)
    return stored


def _initializer(model: ir.Model, name: str, tensor: StoredTensor, weight: QuantizedTensor) -> ir.Value:
    """An initializer of the graph for a tensor of a quantized weight."""
    packed = weight.bits == 4 and not name.endswith(SCALES)
    const = packed_reference(name, tensor, signed=weight.zeros is None) if packed else reference(name, tensor)
    value = ir.Value(name=name, type=ir.TensorType(const.dtype), shape=const.shape, const_value=const)
    model.graph.register_initializer(value)
    return value


def _name(node: ir.Node, name: str, dtype: ir.DataType | None) -> None:
    """Name a node's output and give it a dtype."""
    assert dtype is not None
    node.outputs[0].name = name
    node.outputs[0].dtype = dtype
