"""The matrix products of a model that OpenVINO's CPU plugin compiled."""

from collections.abc import Iterator
from typing import Any

from funnel_export.bundle.products import Products, Weights
from funnel_export.spec.choices import Dtype

STORED = {
    "i4": Weights(bits=4),
    "u4": Weights(bits=4),
    "i8": Weights(bits=8),
    "u8": Weights(bits=8),
    "f32": Weights(dtype=Dtype.FLOAT32),
    "f16": Weights(dtype=Dtype.FLOAT16),
    "bf16": Weights(dtype=Dtype.BFLOAT16),
}
"""Precisions of the plugin."""


def products_of_model(compiled: Any, rounding: str) -> Products | None:
    """The products in a compiled model's runtime graph; None if one has weights in a precision that is not known.

    The runtime graph does not tell whether activations are rounded, but the plugin's property does: 0 forbids it.

    Args:
        compiled: the model, before it is run or after.
        rounding: name of the property.
    """
    found = list(_weights(compiled.get_runtime_model()))
    group = int(compiled.get_property(rounding))
    codes = any(each is not None and each.bits is not None for each in found)
    return Products.count(
        found,
        activations=("rounded" if group else "exact") if codes else None,
        setting=f"{rounding} {group}" if codes else None,
        seen="runtime graph",
    )


def _weights(graph: Any) -> Iterator[Weights | None]:
    """How the weights of each product are stored; None if that is not known.

    The plugin calls a product with weights FullyConnected, and its runtime precision is that of its weights.
    """
    for op in graph.get_ordered_ops():
        kind = _info(op, "layerType")
        if kind == "FullyConnected" or (kind == "MatMul" and _reads_constant(op)):
            yield STORED.get(_info(op, "runtimePrecision"))


def _reads_constant(op: Any) -> bool:
    return bool(_info(op.input(1).get_source_output().get_node(), "layerType") == "Const")


def _info(op: Any, key: str) -> str:
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
