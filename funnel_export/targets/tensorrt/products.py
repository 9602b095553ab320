"""The matrix products of a TensorRT network: without a GPU, nothing more is known of a plan's."""

from collections.abc import Iterator
from typing import Any

from funnel_export.bundle.products import Products, Weights
from funnel_export.targets.tensorrt.parse import dtype_name

CODES = {"int4": Weights(bits=4), "int8": Weights(bits=8)}


def products_of_network(trt: Any, network: Any) -> Products | None:
    """The products of a network with codes; None if none has codes, or one has weights of a kind that is not known."""
    found = list(_weights(trt, network))
    return Products.count(found, seen="network") if set(found) & set(CODES.values()) else None


def _weights(trt: Any, network: Any) -> Iterator[Weights | None]:
    """How the weights of each product are stored; None if that is not known."""
    stored: dict[str, Weights | None] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.DEQUANTIZE:
            stored[layer.get_output(0).name] = CODES.get(dtype_name(layer.get_input(0).dtype))
        elif layer.type == trt.LayerType.CONSTANT:
            stored[layer.get_output(0).name] = Weights.plain(dtype_name(layer.get_output(0).dtype))
        elif layer.type == trt.LayerType.SHUFFLE and layer.get_input(0).name in stored:
            stored[layer.get_output(0).name] = stored[layer.get_input(0).name]  # transposed or reshaped
        elif layer.type == trt.LayerType.MATRIX_MULTIPLY and layer.get_input(1).name in stored:
            yield stored[layer.get_input(1).name]
