"""The audit of quantized weights: which weights have codes, in how many bits, and how the graph reads them."""

from collections.abc import Iterator

import onnx_ir as ir

from funnel_export.checkpoint.quantized import CODES, ROW_CODES, ROW_SCALES, SCALES, ZEROS, bare_of
from funnel_export.exporter.audit_layers import producer
from funnel_export.families.base import Family
from funnel_export.spec.quantization import Part, Quantization

CODE_DTYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
"""Dtype of codes by bits, and by whether they are symmetric."""


def quantization_faults(model: ir.Model, family: Family, quantization: Quantization | None) -> Iterator[str]:
    """All faults of the quantized weights of a graph, and of weights that should be."""
    for name, value in model.graph.initializers.items():
        if not isinstance(value.const_value, ir.ExternalTensor):
            continue
        weight = bare_of(name)
        part = family.part_of(weight)
        bits = None if part is None or quantization is None else quantization.bits_of(part)
        if quantization is not None and family.bare_name(weight) in quantization.kept_weights:
            bits = None
        if (weight == name) == (bits is not None) and not (weight == name and _also_kept(part, quantization)):
            yield f"{name} is {'not ' if weight == name else ''}quantized, and the quantization is {quantization}"
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            yield from (f"{node.name}: {fault}" for fault in _product_faults(node, family, quantization))
    for name, value in model.graph.initializers.items():
        if name.endswith(ROW_CODES):
            yield from (f"{name}: {fault}" for fault in _row_faults(value))


def _also_kept(part: Part | None, quantization: Quantization | None) -> bool:
    """Whether it is an embedding that is kept since it is the head too, and the head is kept."""
    return part is Part.EMBEDDING and quantization is not None and Part.HEAD in quantization.keep


def _product_faults(node: ir.Node, family: Family, quantization: Quantization | None) -> Iterator[str]:
    names = [value.name if value is not None else None for value in node.inputs]
    weight = bare_of(str(names[0]))
    zeros = [] if quantization is None or quantization.symmetric else [weight + ZEROS]
    if names != [weight + CODES, weight + SCALES, *zeros]:
        yield f"its inputs are {names}"
        return
    products = [(use.node.op_type, use.idx) for use in node.outputs[0].uses()]
    if not products or set(products) != {("MatMul", 1)}:
        yield f"its output is used by {products}, not as the weights of a MatMul"
    part, codes, scales = family.part_of(weight), node.inputs[0], node.inputs[1]
    if quantization is None or part is None or codes is None or scales is None or codes.shape is None:
        return
    inputs, outputs = (int(size) for size in codes.shape.numpy())
    bits = quantization.bits_of(part, outputs)
    block = quantization.block_of(inputs)
    wanted = CODE_DTYPES.get((bits or 0, quantization.symmetric)), (0 if block else 1), block or 0
    found = codes.dtype, node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if found != wanted:
        yield f"dtype, axis and block size are {found}, not {wanted}"
    blocks = [outputs] if block is None else [inputs // block, outputs]
    if scales.shape is None or list(scales.shape.numpy()) != blocks:
        yield f"its scales are {scales.shape}, not {blocks}"


def _row_faults(codes: ir.Value) -> Iterator[str]:
    """Faults of an embedding: gathered codes, cast, times the scales that are gathered with the same tokens."""
    scales = str(codes.name).removesuffix(ROW_CODES) + ROW_SCALES
    for use in codes.uses():
        casts = [each.node for each in use.node.outputs[0].uses()]
        products = [each.node for cast in casts for each in cast.outputs[0].uses()]
        if use.node.op_type != "Gather" or [n.op_type for n in (*casts, *products)] != ["Cast", "Mul"]:
            yield f"it is used by {use.node.op_type}, {', '.join(n.op_type for n in (*casts, *products))}"
            continue
        gather = producer(products[0].inputs[1], "Gather")
        if gather is None or gather.inputs[0] is None or gather.inputs[0].name != scales:
            yield "its rows are not multiplied by their scales"
        elif gather.inputs[1] is not use.node.inputs[1]:
            yield "its rows are multiplied by the scales of other tokens"
