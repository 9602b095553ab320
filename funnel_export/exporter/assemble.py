"""Inserts the traced parts into the outline: the result is one flat graph of standard ops."""

from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

from funnel_export.exporter.outline import DOMAIN, MARKER
from funnel_export.exporter.trace import Trace
from funnel_export.spec.choices import Dtype
from funnel_export.spec.funnel import node_prefix

_PART, _NAMES = "funnel_export.part", "funnel_export.names"
# torch translates `x * rsqrt(y)` of norms with a reciprocal; ONNX Runtime fuses only norms that divide. Norms of graphs
# in bfloat16 must not be fused: the CUDA provider of version 1.31 has no kernel for them, with weights in float32.
_DIVIDE = RewriteRule(lambda op, x, y: op.Mul(x, op.Reciprocal(y)), lambda op, x, y: op.Div(x, y))
RULES = RewriteRuleSet([_DIVIDE], commute=True)


def assemble(trace: Trace, dtype: Dtype) -> tuple[ir.Model, list[ir.Value]]:
    """One flat graph from a trace of a model that computes in `dtype`, and its values that are the model's parameters.

    1. The outline and each distinct part are optimized separately. Weights are inputs, so no optimizer folds them.
    2. Each marker node is replaced by a call of its part with the part's weights; then the calls are inlined.
    3. Nodes and values of a part get the part's name as a prefix; its result gets the name of its boundary.
    4. Equal constants are merged. Metadata and the shapes of inner values are removed; parts name their axes
       differently.

    The parameters are returned as inputs of the graph, after the model's own inputs.
    """
    model = trace.outline
    weights = _parameters_to_inputs(model)
    _optimize(model, dtype)
    functions: dict[int, ir.Function] = {}
    for part in trace.parts.values():
        if id(part.body) not in functions:
            _optimize(part.body, dtype)
            functions[id(part.body)] = _as_function(part.body, f"Part{len(functions)}")
    for function in functions.values():
        model.functions[function.identifier()] = function
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == MARKER:
            _call(model, node, trace, functions, weights)
    common.InlinePass()(model)
    _name_values(model, trace)
    tidy(model)
    _finish(model)
    return model, list(weights.values())


def _optimize(model: ir.Model, dtype: Dtype) -> None:
    """Run onnxscript's optimizer, then `RULES` unless the dtype is bfloat16.

    A rule sees only the nodes whose operator is that of its last node. Comparing every node with every rule took a
    sixth of an export.
    """
    match = RewriteRule.match

    def quick_match(rule: Any, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        last = getattr(rule._target_pattern, "output_nodes", [None])[0]
        wanted = None if last is None else last.op_identifier()
        return None if wanted is not None and wanted[1] != node.op_type else match(rule, model, graph, node, **options)

    RewriteRule.match = quick_match  # type: ignore[assignment, method-assign]
    try:
        optimizer.optimize(model)
        if dtype is not Dtype.BFLOAT16:
            RULES.apply_to_model(model)
    finally:
        RewriteRule.match = match  # type: ignore[method-assign]


def tidy(model: ir.Model) -> None:
    """Merge equal constants and equal nodes; remove unused nodes and all metadata."""
    for cleanup in (
        common.ClearMetadataAndDocStringPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        cleanup(model)


def _parameters_to_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Turn parameters (initializers without values) into inputs; constants stay initializers."""
    inputs = {}
    for name, value in list(model.graph.initializers.items()):
        if isinstance(getattr(value.const_value, "raw", None), torch.nn.Parameter):
            inputs[name] = model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
    return inputs


def _as_function(body: ir.Model, name: str) -> ir.Function:
    """A part's graph as a function; its constants become nodes because functions have no initializers."""
    graph = body.graph
    for value in list(graph.initializers.values()):
        node = ir.node("Constant", [], attributes={"value": value.const_value})
        node.outputs[0].name = value.name
        del graph.initializers[str(value.name)]
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
    for node in graph:  # inlining changes the names, `_name_values` restores them
        node.metadata_props[_NAMES] = "\n".join(str(output.name) for output in node.outputs)
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _call(
    model: ir.Model, marker: ir.Node, trace: Trace, functions: dict[int, ir.Function], weights: dict[str, ir.Value]
) -> None:
    """Replace a marker by a call of its part, and add the part's weights to the graph's inputs."""
    name = marker.attributes["name"].as_string()
    part = trace.parts[name]
    function = functions[id(part.body)]
    for weight, formal in zip(part.weights, function.inputs[len(marker.inputs) :], strict=True):
        if weight not in weights:
            assert formal.dtype is not None  # needs a new type: setting a value's dtype changes its type in place
            weights[weight] = ir.Value(name=weight, type=ir.TensorType(formal.dtype), shape=formal.shape)
            model.graph.inputs.append(weights[weight])
    inputs = [*marker.inputs, *(weights[weight] for weight in part.weights)]
    count = len(marker.outputs)
    call = ir.Node(DOMAIN, function.name, inputs, name=name, num_outputs=count, metadata_props={_PART: name})
    for marked, result in zip(marker.outputs, call.outputs, strict=True):
        assert marked.dtype is not None
        result.dtype = marked.dtype
    names = [marked.name if marked.is_graph_output() else name for marked in marker.outputs]
    ir.convenience.replace_nodes_and_values(model.graph, marker, [marker], [call], marker.outputs, call.outputs)
    for result, own in zip(call.outputs, names, strict=True):
        result.name = own


def _name_values(model: ir.Model, trace: Trace) -> None:
    """Prefix the names of nodes and values with their part; the part's result has the part's name."""
    for node in model.graph:
        part = node.metadata_props.get(_PART)
        prefix = node_prefix(part) if part else "model"
        names = node.metadata_props.get(_NAMES, "\n".join(str(output.name) for output in node.outputs)).split("\n")
        node.name = f"{prefix}/{node.op_type}.{names[0]}"
        for value, name in zip(node.outputs, names, strict=True):
            if value.name not in trace.parts and not value.is_graph_output():
                value.name = f"{prefix}/{name}"


def _finish(model: ir.Model) -> None:
    model.producer_name, model.producer_version = "funnel_export", None
    for name in list(model.graph.initializers):
        value = model.graph.initializers.pop(name)
        value.name = name if "." in name else f"const.{name}"
        model.graph.register_initializer(value)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
