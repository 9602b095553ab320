"""Checks that a graph has the form of an export: flat, standard ops only, and of plausible size."""

from collections import Counter
from typing import TYPE_CHECKING

from funnel_export.errors import BundleError
from funnel_export.spec.export import OPSETS

if TYPE_CHECKING:
    from onnx import ModelProto

MOST_NODES = 200_000
"""A model of 256 layers has 30,000."""
STANDARD = ("", "ai.onnx")
"""Both names of the domain of standard ops."""


def check_form(model: "ModelProto") -> None:
    """Refuse a graph on which a checker or a runtime could spend hours or gigabytes.

    Raises:
        BundleError: for functions, other domains or opsets, subgraphs, or too many nodes.
    """
    import onnx

    within = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    nodes = len(model.graph.node)
    found = [f"{nodes} nodes"] if nodes > MOST_NODES else []
    if not found:
        foreign = Counter(f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in STANDARD)
        nested = Counter(n.op_type for n in model.graph.node if any(a.type in within for a in n.attribute))
        found += [f"{count} x {op}" for op, count in foreign.most_common(3)]
        found += [f"{count} x {op} with a graph inside" for op, count in nested.most_common(3)]
    found += [
        f"opset {entry.version} of {entry.domain or 'ai.onnx'}"
        for entry in model.opset_import[:3]
        if entry.domain not in STANDARD or entry.version not in OPSETS
    ]
    if model.functions:
        found.append(f"{len(model.functions)} functions")
    if found:
        raise BundleError(
            "a graph of the bundle does not have the form of an export",
            got=", ".join(found),
            wanted=f"a flat graph of at most {MOST_NODES} standard ops of opset {OPSETS[0]} to {OPSETS[-1]}",
            hint="export the bundle again",
        )
