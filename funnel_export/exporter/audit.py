"""The audit: does an exported graph still say what the checkpoint and the funnel say?

It reads the finished graph only, and knows nothing of how it was made.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from funnel_export.errors import ExportError
from funnel_export.exporter.assemble import PREFIXES
from funnel_export.exporter.trace import BATCH, INPUTS, OUTPUTS, SEQUENCE
from funnel_export.exporter.weights import COMPUTE_DTYPES
from funnel_export.families.gemma2 import SLIDING, Architecture
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.funnel import FunnelSpec

CONTROL_FLOW = {"If", "Loop", "Scan", "NonZero", "SequenceMap"}
LARGEST_CONSTANT = 1 << 16
"""Bytes; what is larger is a weight, and belongs to the checkpoint's files."""


def find_faults(
    model: ir.Model,
    architecture: Architecture,
    task: Task,
    spec: FunnelSpec | None,
    dtype: Dtype,
    logits: Logits = Logits.ALL,
) -> list[str]:
    """Everything in a graph that is not what it should be.

    1. Standard ops only, and none whose shapes depend on data.
    2. Inputs and outputs by name, dtype and dynamic axis.
    3. One softcap in each layer's attention, and one on a language model's logits, each with the config's cap.
    4. Each layer's mask slides, by the config's window, where its layer type says so, and nowhere else.
    5. Products in the compute dtype, softmax and norms in float32.
    6. Pooling and recovery where the funnel says so.
    7. Every weight refers to the checkpoint; no large constant in the graph.
    8. Every value has the dtype and the rank that its op gives it.
    """
    return [
        *_ops(model),
        *_contract(model, task, logits),
        *_softcaps(model, architecture, task),
        *_masks(model, architecture, spec),
        *_dtypes(model, dtype),
        *_funnel(model, architecture, spec),
        *_weights(model),
        *_types(model),
    ]


def audit(
    model: ir.Model,
    architecture: Architecture,
    task: Task,
    spec: FunnelSpec | None,
    dtype: Dtype,
    logits: Logits = Logits.ALL,
) -> None:
    """Fail a graph with faults: `ExportError` names all of them at once."""
    findings = find_faults(model, architecture, task, spec, dtype, logits)
    if findings:
        raise ExportError(
            "the exported graph failed its audit:\n" + "\n".join(f"  - {finding}" for finding in findings),
            hint="please report this with the versions that `funnel-export doctor` prints",
        )


def _ops(model: ir.Model) -> Iterator[str]:
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.name}: {node.domain}::{node.op_type} is not a standard op"
        if node.op_type in CONTROL_FLOW:
            yield f"{node.name}: {node.op_type} makes shapes depend on data"
    if model.functions:
        yield f"functions are left: {[f.name for f in model.functions.values()]}"


def _contract(model: ir.Model, task: Task, logits: Logits) -> Iterator[str]:
    for value, name in zip(model.graph.inputs, INPUTS, strict=False):
        if value.name != name or value.dtype is not ir.DataType.INT64 or _axes(value) != [BATCH, SEQUENCE]:
            yield f"input {name} is {value.name} {value.dtype} {_axes(value)}, not int64 [{BATCH}, {SEQUENCE}]"
    if len(model.graph.inputs) != len(INPUTS) or len(model.graph.outputs) != 1:
        yield f"{len(model.graph.inputs)} inputs and {len(model.graph.outputs)} outputs, not {len(INPUTS)} and 1"
        return
    output = model.graph.outputs[0]
    tokens = [] if task is Task.TEXT_CLASSIFICATION else [1 if logits is Logits.LAST else SEQUENCE]
    wanted = [BATCH, *tokens]
    if output.name != OUTPUTS[task] or _axes(output)[:-1] != wanted:
        yield f"output {OUTPUTS[task]} is {output.name} {_axes(output)}, not {[*wanted, '...']}"


def _axes(value: ir.Value) -> list[Any]:
    return [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape or ()]


def _softcaps(model: ir.Model, architecture: Architecture, task: Task) -> Iterator[str]:
    wanted: dict[str, float | None] = {
        f"layers.{i}": architecture.attn_logit_softcapping for i in range(architecture.num_hidden_layers)
    }
    wanted["model"] = architecture.final_logit_softcapping if task is Task.TEXT_GENERATION else None
    found: dict[str, list[float | None]] = {prefix: [] for prefix in wanted}
    for node in model.graph:
        if node.op_type == "Tanh" and _producer(node.inputs[0], "Div") is not None:
            found.setdefault(_prefix(node), []).append(_cap(node))
    for prefix, cap in wanted.items():
        if cap == 1.0:  # x / 1 and x * 1 are optimized away; the parity check sees whether the tanh is there
            continue
        caps = found[prefix]
        if len(caps) != (cap is not None) or not all(c is not None and _close(c, cap) for c in caps):
            yield f"{prefix}: softcaps {caps}, and config.json says {cap}"


def _cap(tanh: ir.Node) -> float | None:
    """The cap c of tanh(x / c) * c, or None if the two differ."""
    divisor = _constant(_producer(tanh.inputs[0], "Div"), 1)
    scales = {_constant(use.node, 1) for use in tanh.outputs[0].uses() if use.node.op_type == "Mul"}
    return divisor if scales == {divisor} else None


def _close(value: float, wanted: float | None) -> bool:
    return wanted is not None and abs(value - wanted) <= abs(wanted) * 2**-8  # a cap is rounded to the compute dtype


def _masks(model: ir.Model, architecture: Architecture, spec: FunnelSpec | None) -> Iterator[str]:
    softmaxes = {_prefix(node): node for node in model.graph if node.op_type == "Softmax"}
    by_mask: dict[str, set[bool]] = {}
    for index, kind in enumerate(architecture.layer_types):
        softmax = softmaxes.get(f"layers.{index}")
        bias = _bias(softmax) if softmax is not None else None
        if bias is None:
            yield f"layers.{index}: no softmax over scores with a mask"
            continue
        window = sliding_window_of(bias)
        wanted = architecture.sliding_window if kind == SLIDING else None
        if window != wanted:
            yield f"layers.{index}: its mask slides by {window}, and {kind} means {wanted}"
        middle = spec is not None and spec.pool_layer <= index < spec.recover_layer
        by_mask.setdefault(str(bias.name), set()).add(middle)
    yield from (f"{name}: one mask for tokens and slots" for name, ends in by_mask.items() if len(ends) > 1)


def _bias(softmax: ir.Node) -> ir.Value | None:
    """The mask that is added to a layer's scores."""
    value = softmax.inputs[0]
    cast = _producer(value, "Cast")
    add = _producer(cast.inputs[0] if cast else value, "Add")
    return next((v for v in add.inputs if v is not None and _producer(v, "Where")), None) if add else None


def sliding_window_of(bias: ir.Value) -> int | None:
    """The w of `key > query - w` in the condition of a mask; None if it has no such term."""
    pending, seen = [_producer(bias, "Where")], set[ir.Node]()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Greater":
            window = _constant(_producer(node.inputs[1], "Sub"), 1)
            if window is not None:
                return int(window)
        if node.op_type in ("Where", "And"):
            inputs = node.inputs[:1] if node.op_type == "Where" else node.inputs
            pending += [value.producer() for value in inputs if value is not None]
    return None


def _dtypes(model: ir.Model, dtype: Dtype) -> Iterator[str]:
    compute = COMPUTE_DTYPES[dtype]
    for node in model.graph:
        wanted = {"MatMul": compute, "Gemm": compute, "Softmax": ir.DataType.FLOAT, "ReduceMean": ir.DataType.FLOAT}
        if node.op_type not in wanted:
            continue
        product = node.op_type in ("MatMul", "Gemm")
        if product and _prefix(node) == "model" and _producer(node.inputs[1], "Transpose") is None:
            continue  # RoPE's angles, in float32 always, are a product in some versions of transformers
        got = {value.dtype for value in node.inputs[: 2 if product else 1] if value}
        if got != {wanted[node.op_type]}:
            yield f"{node.name}: {node.op_type} of {sorted(str(d) for d in got)}, not {wanted[node.op_type]}"
    for output in model.graph.outputs:
        if output.dtype is not compute:
            yield f"the output is {output.dtype}, not {compute}"


def _funnel(model: ir.Model, architecture: Architecture, spec: FunnelSpec | None) -> Iterator[str]:
    values = {value.name for node in model.graph for value in node.outputs}
    prefixes = {_prefix(node) for node in model.graph}
    for boundary, prefix in PREFIXES.items():
        present = (boundary in values, prefix in prefixes)
        if present != (spec is not None,) * 2:
            yield f"{boundary} and nodes under {prefix}/: {present}, and the funnel is {spec}"
    missing = [i for i in range(architecture.num_hidden_layers) if f"layers.{i}" not in values]
    if missing:
        yield f"layers {missing} are not in the graph"


def _weights(model: ir.Model) -> Iterator[str]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            yield f"{name} has no value"
        elif not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > LARGEST_CONSTANT:
            yield f"{name} puts {tensor.nbytes} bytes into the graph instead of referring to the checkpoint"


def _prefix(node: ir.Node) -> str:
    match = re.match(r"(layers\.\d+|funnel/\w+|[^/]*)", node.name or "")
    return match.group(0) if match else ""


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _constant(node: ir.Node | None, index: int) -> float | None:
    value = node.inputs[index] if node is not None else None
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(np.asarray(value.const_value.numpy(), dtype=np.float64).reshape(-1)[0])


def _types(model: ir.Model) -> Iterator[str]:
    try:
        onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as err:
        yield f"dtypes or shapes are not what the ops give: {str(err).strip()}"
