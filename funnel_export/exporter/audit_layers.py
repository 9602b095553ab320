"""The audit of each decoder layer: its softcap, mask, scale, norms and rotary embedding.

The facts come from the family; the graph is read backwards from each layer's softmax.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family, LayerFacts
from funnel_export.families.rope import Rope
from funnel_export.spec.funnel import Segment, layer_name, segment_of
from funnel_export.spec.stages import Stage

ROUNDING = 2**-7
"""How far a constant may be off its value, as a share of it: it is rounded to the compute dtype."""


def layer_faults(
    model: ir.Model,
    family: Family,
    architecture: Architecture,
    segments: Sequence[Segment],
    stage: Stage | None = None,
    trimmed_layer: int | None = None,
) -> Iterator[str]:
    """All faults in the decoder layers of a graph.

    Args:
        model: the graph.
        family: of the checkpoint.
        architecture: what its config says.
        segments: the layers that the graph has.
        stage: the graph's part of a model that generates text; None for a single pass.
        trimmed_layer: the layer that norms all columns for keys and values, and the chosen ones for queries.
    """
    by_layer: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        by_layer.setdefault(prefix_of(node), []).append(node)
    by_mask: dict[str, set[bool]] = {}
    for index in (index for segment in segments for index in segment.layers):
        name, facts = layer_name(index), family.layer_facts(architecture, index)
        if stage is not None:
            facts = replace(facts, sliding_window=stage.window(facts.sliding_window))
        nodes = by_layer.get(name, [])
        yield from (f"{name}: {fault}" for fault in _softcap_faults(nodes, facts.softcap))
        softmax = next((node for node in nodes if node.op_type == "Softmax"), None)
        biases = _biases(softmax) if softmax is not None else []
        if not biases:
            yield f"{name}: no softmax over scores with a mask"
            continue
        for bias in biases:
            yield from (f"{name}: {fault}" for fault in _mask_faults(bias, architecture.layer_types[index], facts))
            by_mask.setdefault(str(bias.name), set()).add(segment_of(segments, index).pooled)
        reach = stage.reach(facts.sliding_window, architecture.max_position_embeddings) if stage is not None else None
        found = {each for bias in biases if (each := _reach(bias)) is not None}
        if found != {reach} - {None} and (found or reach != 1):  # a cache has an entry, so no minimum with 1 is left
            yield f"{name}: it reads {found or 'all'} entries of its cache, and {reach or 'all'} are wanted"
        scales = [scale for node in nodes if (scale := _scale(node)) is not None]
        if facts.scale != 1.0 and not (len(scales) == 1 and _close(scales[0], facts.scale)):
            yield f"{name}: scores are scaled by {scales}, and config.json says {facts.scale:.6g}"
        norms = sum(node.op_type == "ReduceMean" for node in nodes)
        keys = index == trimmed_layer
        if norms != facts.norms + keys:
            yield f"{name}: {norms} norms, and a {family.title} has {facts.norms}{', with one more for keys' * keys}"
        yield from (f"{name}: {fault}" for fault in _rope_faults(nodes, facts.rope, architecture.head_dim))
    yield from (f"{name}: one mask for tokens and slots" for name, ends in by_mask.items() if len(ends) > 1)


def head_faults(model: ir.Model, architecture: Architecture, *, capped: bool) -> Iterator[str]:
    """Faults of the softcap on a language model's logits; `capped` says whether the graph has such logits."""
    nodes = [node for node in model.graph if prefix_of(node) == "model"]
    cap = architecture.logits_softcap if capped else None
    yield from (f"model: {fault}" for fault in _softcap_faults(nodes, cap))


def _softcap_faults(nodes: Sequence[ir.Node], cap: float | None) -> Iterator[str]:
    caps = [_cap(node) for node in nodes if node.op_type == "Tanh" and producer(node.inputs[0], "Div") is not None]
    if cap == 1.0:  # x / 1 and x * 1 are optimized away; the parity check sees whether the tanh is there
        return
    if len(caps) != (cap is not None) or not all(c is not None and _close(c, cap) for c in caps):
        yield f"softcaps {caps}, and config.json says {cap}"


def _cap(tanh: ir.Node) -> float | None:
    """The cap c of tanh(x / c) * c, or None if the two differ."""
    divisor = _constant(producer(tanh.inputs[0], "Div"), 1)
    scales = {_constant(use.node, 1) for use in tanh.outputs[0].uses() if use.node.op_type == "Mul"}
    return divisor if scales == {divisor} else None


def _close(value: float, wanted: float | None) -> bool:
    return wanted is not None and abs(value - wanted) <= abs(wanted) * ROUNDING


def _scale(node: ir.Node) -> float | None:
    """The constant by which a node multiplies a product of matrices, None if it does not."""
    if node.op_type != "Mul":
        return None
    scores = node.inputs[0]
    joined = producer(_before(scores, "Reshape"), "Concat")  # over earlier keys and the chunk's
    products = [scores] if joined is None else joined.inputs
    return _constant(node, 1) if all(producer(each, "MatMul") for each in products) else None


def _before(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The first input of a value's node if it is of this op, else the value."""
    node = producer(value, op_type)
    return value if node is None else node.inputs[0]


def _mask_faults(bias: ir.Value, kind: str, facts: LayerFacts) -> Iterator[str]:
    window, later, causal = _terms_of_mask(bias)
    if window != facts.sliding_window:
        yield f"its mask slides by {window}, and {kind} means {facts.sliding_window}"
    if causal != facts.causal:
        yield f"its mask is {'' if causal else 'not '}causal, and the model is {'' if facts.causal else 'not '}"
    if not facts.causal and later != facts.sliding_window:
        yield f"its mask reaches {later} positions ahead, and {kind} means {facts.sliding_window}"


def sliding_window_of(bias: ir.Value) -> int | None:
    """The w of `key > query - w` in the condition of a mask; None if it has no such term."""
    return _terms_of_mask(bias)[0]


def _terms_of_mask(bias: ir.Value) -> tuple[int | None, int | None, bool]:
    """The terms of a mask's condition: w of `key > query - w`, w of `key < query + w`, and whether `key <= query`."""
    window = later = None
    causal = False
    for node in _upstream(bias, _conditions):
        if node.op_type == "Greater":
            window = _distance(node, "Sub") or window
        elif node.op_type == "Less":
            later = _distance(node, "Add") or later
        elif node.op_type == "LessOrEqual":
            causal = True
    return window, later, causal


def _conditions(node: ir.Node) -> Sequence[ir.Value | None]:
    """The operands of a mask's node that are conditions."""
    return {"Where": node.inputs[:1], "And": node.inputs}.get(node.op_type, ())


def _reach(bias: ir.Value) -> int | None:
    """The most entries of a cache that a mask is for: r of min(capacity, r) in the positions of its keys."""
    for node in _upstream(bias, lambda node: node.inputs):
        if node.op_type == "Min":
            counts = [count for index in range(len(node.inputs)) if (count := _constant(node, index)) is not None]
            return int(counts[0]) if counts else None
    return None


def _upstream(value: ir.Value, through: Callable[[ir.Node], Sequence[ir.Value | None]]) -> Iterator[ir.Node]:
    """The nodes behind a value, each once; `through` gives the inputs of a node that the search follows."""
    pending, seen = [value.producer()], set[ir.Node]()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [each.producer() for each in through(node) if each is not None]


def _distance(comparison: ir.Node, op_type: str) -> int | None:
    constant = _constant(producer(comparison.inputs[1], op_type), 1)
    return None if constant is None else int(constant)


def _biases(softmax: ir.Node) -> list[ir.Value]:
    """The masks that are added to a layer's scores: one, or one for earlier keys and one for the chunk's."""
    add = producer(_before(softmax.inputs[0], "Cast"), "Add")
    added = add.inputs if add is not None else []
    joined = [node for value in added if (node := producer(value, "Concat"))]
    masks = [value for node in joined for value in node.inputs] or added
    return [value for value in masks if value is not None and producer(value, "Where")]


def _rope_faults(nodes: Sequence[ir.Node], rope: Rope, head_dim: int) -> Iterator[str]:
    wanted = rope.frequencies(head_dim)
    if wanted is None:
        return
    found = _frequencies(nodes)
    if found is None:
        yield "no frequencies of a rotary embedding"
    elif len(found) != len(wanted) or not np.allclose(found, wanted, rtol=1e-5, atol=0):
        yield f"RoPE's frequencies {_ends(found)}, and config.json says {_ends(wanted)} (base {rope.rope_theta:g})"


def _ends(frequencies: Sequence[float]) -> str:
    return f"{frequencies[0]:.4g} to {frequencies[-1]:.4g}"


def _frequencies(nodes: Sequence[ir.Node]) -> list[float] | None:
    """The constant by which positions are multiplied before the cosines and sines of a layer.

    The search goes back from the layer's products with cosines and sines, and not through the layer's own computation.
    """
    sines = (node.inputs[1] for node in nodes if node.op_type == "Mul" and len(node.inputs) == 2)
    pending = [value.producer() for value in sines if value is not None]
    seen = set[ir.Node]()
    while pending:
        node = pending.pop()
        if node is None or node in seen or (node in nodes and node.op_type not in ("Unsqueeze", "Cast", "Reshape")):
            continue
        seen.add(node)
        if node.op_type in ("Mul", "MatMul"):
            for constant in map(_broadcast_constant, node.inputs):
                if constant is not None and constant.size > 1 and constant.dtype is ir.DataType.FLOAT:
                    return [float(f) for f in np.asarray(constant.numpy()).reshape(-1)]
        pending += [value.producer() for value in node.inputs if value is not None]
    return None


def _broadcast_constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that a value is, or whose elements it repeats: some versions of torch leave the `Expand`."""
    node = producer(value, "Expand")
    source = value if node is None else node.inputs[0]
    return None if source is None else source.const_value


def prefix_of(node: ir.Node) -> str:
    """The part of the model that a node belongs to: `layers.3`, `funnel/pool`, `funnel/recover` or `model`."""
    match = re.match(r"(layers\.\d+|\w+/(?:pool|recover)(?=/)|[^/]*)", node.name or "")
    return match.group(0) if match else ""


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, None if it is of another op."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _constant(node: ir.Node | None, index: int) -> float | None:
    value = node.inputs[index] if node is not None else None
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(np.asarray(value.const_value.numpy(), dtype=np.float64).reshape(-1)[0])
