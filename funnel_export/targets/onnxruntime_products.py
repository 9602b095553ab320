"""The matrix products of a graph that ONNX Runtime optimized."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from funnel_export.bundle.products import Products, Weights

if TYPE_CHECKING:
    import onnx_ir as ir

WITH_CODES = "MatMulNBits"
PLAIN = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
EXACT_LEVELS = (0, 1)
"""Values of `accuracy_level` that leave activations as they are: unset, and float32. Others let them be rounded."""


def products_of_graph(path: Path) -> Products | None:
    """The products in an optimized graph; None if one of them has weights of a kind that is not known.

    One is: codes in front of a plain product, of which a session may still make a product with codes.
    """
    import onnx_ir as ir

    nodes = list(ir.load(path).graph)
    levels = {node.attributes.get_int("accuracy_level", 0) for node in nodes if node.op_type == WITH_CODES}
    exact = all(level in EXACT_LEVELS for level in levels)
    return Products.count(
        _weights(nodes),
        activations=("exact" if exact else "rounded") if levels else None,
        setting=f"accuracy_level {' '.join(map(str, sorted(levels)))}" if levels else None,
        seen="optimized graph",
    )


def _weights(nodes: "list[ir.Node]") -> "Iterator[Weights | None]":
    """How the weights of each product are stored; None if that is not known."""
    for node in nodes:
        if node.op_type == WITH_CODES:
            yield Weights.codes(node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0))
        elif node.op_type in PLAIN:
            weight = node.inputs[1]
            if weight is not None and weight.is_initializer():
                yield None if weight.dtype is None else Weights.plain(weight.dtype.numpy().name)
            elif weight is not None and _op(weight) == "DequantizeLinear":
                yield None
        elif "MatMul" in node.op_type:
            yield None


def _op(value: "ir.Value") -> str:
    node = value.producer()
    return "" if node is None else node.op_type
