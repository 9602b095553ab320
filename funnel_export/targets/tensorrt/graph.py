"""The graph of a bundle as TensorRT takes it: an embedding that is stored as codes becomes one table.

TensorRT takes codes in front of products only. The table has the values that the graph computes, and exists in memory
only: the bundle's files stay as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.quantized import ROW_CODES, ROW_SCALES
from funnel_export.checkpoint.values import read_exactly
from funnel_export.system.files import open_regular

if TYPE_CHECKING:
    import onnx_ir as ir

CHUNK = 1 << 22
"""Most weights that are computed at once."""
NO_FILE = "in-memory"
"""Name of a table's file in the graph; no such file is read, since TensorRT is given the table."""


@dataclass(frozen=True, slots=True)
class ReadableGraph:
    """A graph that TensorRT can read; it must outlive the parser that reads it."""

    path: Path
    """File of the bundle's graph, beside its weight files."""
    content: bytes
    """The graph that refers to the tables; empty if there are none, and the file is read instead."""
    tables: Mapping[str, NDArray[Any]]
    """Embeddings [tokens, width] in the dtype of their scales, by the weight's name."""


def readable_graph(path: Path) -> ReadableGraph:
    """The graph in a file, with a table in place of each embedding that is stored as codes.

    An embedding that the graph reads in another way than `export` writes it stays as it is.

    Raises:
        OSError: if the graph or a weight file cannot be read.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.load(path)
    tables = dict(_replaced(model))
    if not tables:
        return ReadableGraph(path, b"", tables)
    RemoveUnusedNodesPass()(model)  # and initializers: TensorRT refuses codes that nothing reads too
    content: bytes = ir.to_proto(model).SerializeToString()
    return ReadableGraph(path, content, tables)


def parse(parser: Any, graph: ReadableGraph) -> bool:
    """Let TensorRT's parser read a graph; whether it takes it."""
    if not graph.tables:
        return bool(parser.parse_from_file(str(graph.path)))
    loaded = parser.load_model_proto(graph.content, str(graph.path)) and all(
        parser.load_initializer(name, table.ctypes.data, table.nbytes) for name, table in graph.tables.items()
    )
    return bool(loaded and parser.parse_model_proto())


def refit(parser: Any, graph: ReadableGraph) -> bool:
    """Let TensorRT's refitter read the weights of a graph; whether it takes them."""
    if not graph.tables:
        return bool(parser.refit_from_file(str(graph.path)))
    # As in `parse`, for another class: the tests that follow the calls know one class for each argument.
    loaded = parser.load_model_proto(graph.content, str(graph.path)) and all(
        parser.load_initializer(name, table.ctypes.data, table.nbytes) for name, table in graph.tables.items()
    )
    return bool(loaded and parser.refit_model_proto())


def _replaced(model: "ir.Model") -> Iterator[tuple[str, NDArray[Any]]]:
    """Replace the embeddings in a model; yield the name and the table of each."""
    for codes in list(model.graph.initializers.values()):
        name = str(codes.name).removesuffix(ROW_CODES)
        scales = model.graph.initializers.get(name + ROW_SCALES)
        if name == codes.name or scales is None or codes.const_value is None or scales.const_value is None:
            continue
        products = [_product(use.node, scales) for use in codes.uses()]
        found = [product for product in products if product is not None]
        if found and len(found) == len(products):
            table = dequantized_rows(_values(codes.const_value), _values(scales.const_value))
            weight = _register(model, name, table, scales)
            for product in found:
                _gather(model, weight, product)
            yield name, table


def _values(tensor: "ir.TensorProtocol") -> NDArray[Any]:
    """The values of a tensor. onnx_ir itself refuses files with several hard links, as weights of bundles may have."""
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    with open_regular(Path(tensor.path)) as stream:
        stream.seek(tensor.offset or 0)
        content = read_exactly(stream, tensor.nbytes, Path(tensor.path))
    return np.frombuffer(content, tensor.dtype.numpy()).reshape(tensor.shape.numpy())


def _product(gather: "ir.Node", scales: "ir.Value") -> "ir.Node | None":
    """The product of gathered codes and their gathered scales; None if the graph does something else with the codes."""
    casts = [use.node for use in gather.outputs[0].uses()]
    products = [use.node for cast in casts for use in cast.outputs[0].uses()]
    if [node.op_type for node in (gather, *casts, *products)] != ["Gather", "Cast", "Mul"]:
        return None
    factor = products[0].inputs[1]
    other = None if factor is None else factor.producer()
    wanted = other is not None and other.op_type == "Gather" and tuple(other.inputs) == (scales, gather.inputs[1])
    return products[0] if wanted else None


def _register(model: "ir.Model", name: str, table: NDArray[Any], scales: "ir.Value") -> "ir.Value":
    """An initializer for a table, which refers to it and does not contain it: a model in bytes has at most 2 GB."""
    import onnx_ir as ir

    assert scales.dtype is not None
    shape = ir.Shape(table.shape)
    const = ir.ExternalTensor(NO_FILE, 0, table.nbytes, scales.dtype, shape=shape, name=name)
    weight = ir.Value(name=name, type=ir.TensorType(scales.dtype), shape=shape, const_value=const)
    model.graph.register_initializer(weight)
    return weight


def _gather(model: "ir.Model", weight: "ir.Value", product: "ir.Node") -> None:
    """Gather rows of a table in place of a product, under the same name."""
    import onnx_ir as ir

    factor, rows = product.inputs[1], product.outputs[0]
    other = None if factor is None else factor.producer()
    assert other is not None
    prefix = str(product.name).partition("/")[0]
    gather = ir.node("Gather", [weight, other.inputs[1]], attributes={"axis": 0}, name=f"{prefix}/Gather.{weight.name}")
    gather.outputs[0].name, gather.outputs[0].type = rows.name, weight.type
    ir.convenience.replace_all_uses_with(rows, gather.outputs[0])
    model.graph.insert_before(product, gather)
    model.graph.remove(product, safe=True)


def dequantized_rows(codes: NDArray[np.int8], scales: NDArray[Any]) -> NDArray[Any]:
    """The rows [tokens, width] of codes times their scales [tokens, 1], rounded once to the dtype of the scales.

    A code has 7 bits, so its product with a scale in 16 bits is exact in float32.
    """
    table = np.empty(codes.shape, scales.dtype)
    count = max(1, CHUNK // codes.shape[1])
    for first in range(0, len(codes), count):
        rows = slice(first, first + count)
        table[rows] = codes[rows].astype(np.float32) * scales[rows].astype(np.float32)
    return table
