"""Parses an ONNX graph into a TensorRT network, and describes the parser's and the builder's errors."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from funnel_export.errors import TargetRefusedError
from funnel_export.spec.choices import Dtype
from funnel_export.spec.funnel import Segment
from funnel_export.targets.location import describe_place, nodes_named_in
from funnel_export.targets.tensorrt.graph import ReadableGraph, parse

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "DOUBLE": "float64",
}
"""TensorRT's names of dtypes, and numpy's."""

REMEDIES = (
    (r"must have same input types|same type", "cast one of the inputs in the graph: TensorRT inserts no casts"),
    (r"softcap|\[Attention\]", "TensorRT has no softcap in Attention: decompose it, as `funnel-export export` does"),
    (r"RotaryEmbedding|RMSNormalization|LayerNormalization", "decompose this op, as `funnel-export export` does"),
    (r"Plugin not found", "use only ops of the standard ONNX domain, or register the plugin with this op"),
    (r"not supported for Turing|Turing \(SM75\)", "leave 7.5 out of compute_capabilities, or export in float16"),
    (r"out of memory|OutOfMemory", "use a smaller --profile, or --option workspace=..."),
)
OTHERWISE = "export the bundle again: TensorRT builds the graphs that `funnel-export export` writes"
NOISE = re.compile(r".*catchCudaError.*(cudaError 35|driver version is insufficient).*")
"""Messages about a missing driver, which the builder does not need."""


def parse_graph(trt: Any, network: Any, logger: Any, graph: ReadableGraph, segments: Sequence[Segment]) -> Any:
    """Fill a network from a graph and its external data; return the parser, which must stay alive during the build.

    Raises:
        TargetRefusedError: if nodes are refused; the message has each one's op and place in the funnel, and a remedy.
    """
    parser = trt.OnnxParser(network, logger)
    if parse(parser, graph):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    raise TargetRefusedError(
        f"{trt.__name__}'s parser refused {len(errors)} node{'s' * (len(errors) != 1)} of the graph",
        got="\n".join(_describe_error(error, segments) for error in errors) or f"{graph.path}, no reason given",
        hint=remedy("\n".join(f"[{error.node_operator()}] {error.desc()}" for error in errors)),
    )


def _describe_error(error: Any, segments: Sequence[Segment]) -> str:
    name, place = error.node_name(), describe_place(error.node_name(), segments)
    where = f" in {place}" if place else ""
    inside = [f"inside {function}" for function in error.local_function_stack()]
    lines = [line for line in error.desc().splitlines() if not NOISE.match(line)]
    code = str(error.code()).removeprefix("ErrorCode.")
    origin = f"({code}, {error.func()} at {error.file()}:{error.line()})"
    return "\n  ".join([f"{error.node_operator()} {name or error.node()!r}{where}", *inside, *lines, origin])


def describe_failure(messages: list[str], names: list[str], segments: Sequence[Segment]) -> str:
    """The messages of a failed builder, and the places in the funnel of the nodes in them."""
    lines = [line for line in messages if not NOISE.match(line)]
    for name in nodes_named_in("\n".join(lines), names)[:10]:
        place = describe_place(name, segments)
        lines.append(f"{name} is in {place}" if place else name)
    return "\n".join(lines) or "no reason was given"


def remedy(text: str) -> str:
    """What to try, chosen by the text of an error."""
    return next((advice for pattern, advice in REMEDIES if re.search(pattern, text)), OTHERWISE)


def count_products(trt: Any, network: Any) -> dict[str, int]:
    """Number of the network's matrix products in each dtype; TensorRT computes each in its output's dtype."""
    kinds = (network.get_layer(i) for i in range(network.num_layers))
    products = (layer for layer in kinds if layer.type == trt.LayerType.MATRIX_MULTIPLY)
    return dict(Counter(dtype_name(product.get_output(0).dtype) for product in products))


def dtype_name(dtype: Any) -> str:
    """Numpy's name of a TensorRT dtype."""
    return DTYPES.get(dtype.name, str(dtype.name).lower())


def check_product_dtypes(products: dict[str, int], dtype: Dtype) -> None:
    """Raise `TargetRefusedError` unless most products are in the bundle's dtype; RoPE's angles may be in float32."""
    if products.get(dtype, 0) <= sum(products.values()) / 2:
        found = ", ".join(f"{count} in {name}" for name, count in products.items())
        raise TargetRefusedError(
            "the network does not compute in the bundle's dtype",
            got=f"matrix products: {found or 'none'}",
            wanted=f"most of them in {dtype}",
            hint="export the bundle again",
        )
