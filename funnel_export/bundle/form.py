"""Checks that a graph has the form of an export, or of an engine of one: flat, known ops, and of plausible size."""

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from funnel_export.errors import BundleError
from funnel_export.spec.export import OPSETS

if TYPE_CHECKING:
    from onnx import ModelProto

MOST_NODES = 200_000
"""A model of 256 layers has 30,000."""
STANDARD = ("", "ai.onnx")
"""Both names of the domain of standard ops."""
RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains of ops that ONNX Runtime's optimizations make."""
GROWTH, EXTRA = 4, 100
"""An engine may have so many times the nodes of the bundle's graph, and so many more: casts around float16 ops."""


def check_form(model: "ModelProto") -> None:
    """Refuse a graph on which a checker or a runtime could spend hours or gigabytes.

    Raises:
        BundleError: for functions, other domains or opsets, subgraphs, or too many nodes.
    """
    found = _faults(model, MOST_NODES, STANDARD)
    found += [
        f"opset {entry.version} of {entry.domain or 'ai.onnx'}"
        for entry in model.opset_import[:3]
        if entry.domain not in STANDARD or entry.version not in OPSETS
    ]
    if found:
        raise BundleError(
            "a graph of the bundle does not have the form of an export",
            got=", ".join(found),
            wanted=f"a flat graph of at most {MOST_NODES} standard ops of opset {OPSETS[0]} to {OPSETS[-1]}",
            hint="export the bundle again",
        )


def check_engine_form(model: "ModelProto", exported: int) -> None:
    """Refuse an optimized graph that ONNX Runtime does not make of an exported graph.

    Args:
        model: the optimized graph.
        exported: number of nodes of the exported graph.

    Raises:
        BundleError: for functions, domains other than ONNX Runtime's own, subgraphs, or too many nodes.
    """
    most = min(MOST_NODES, GROWTH * exported + EXTRA)
    found = _faults(model, most, STANDARD + RUNTIME)
    if found:
        raise BundleError(
            "a graph of an engine does not have the form of an optimized export",
            got=", ".join(found),
            wanted=f"a flat graph of at most {most} ops, standard ones or ONNX Runtime's own",
            hint="compile the bundle again",
        )


def _faults(model: "ModelProto", most: int, domains: Collection[str]) -> list[str]:
    """What the form of a graph must not have: too many nodes, ops of other domains, subgraphs, functions."""
    import onnx

    within = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    nodes = len(model.graph.node)
    found = [f"{nodes} nodes"] if nodes > most else []
    if not found:
        foreign = Counter(f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in domains)
        nested = Counter(n.op_type for n in model.graph.node if any(a.type in within for a in n.attribute))
        found += [f"{count} x {op}" for op, count in foreign.most_common(3)]
        found += [f"{count} x {op} with a graph inside" for op, count in nested.most_common(3)]
    if model.functions:
        found.append(f"{len(model.functions)} functions")
    return found
