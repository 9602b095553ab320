"""The audit: checks that an exported graph computes what the checkpoint and the funnel describe.

It reads only the finished graph and the sources of its weights, not how the graph was made.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from funnel_export.bundle.signature import Signature, signatures_of
from funnel_export.errors import ExportError
from funnel_export.exporter.audit_layers import head_faults, layer_faults, prefix_of, producer
from funnel_export.exporter.audit_quantization import quantization_faults
from funnel_export.exporter.build import BuiltGraph
from funnel_export.exporter.weights import COMPUTE_DTYPES
from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import (
    Segment,
    boundary_names,
    boundary_of,
    layer_name,
    node_prefix,
    segments_of,
)
from funnel_export.spec.stages import stages_of

CONTROL_FLOW = {"If", "Loop", "Scan", "NonZero", "SequenceMap"}
WEIGHTS = ("Transpose", "DequantizeLinear")
"""Ops that give a product its weights."""
LARGEST_CONSTANT = 1 << 16
"""Largest size in bytes of a constant in a graph; larger ones are weights, which stay in the checkpoint's files."""


def find_faults(
    role: str, model: ir.Model, family: Family, architecture: Architecture, spec: ExportSpec, files: Collection[str]
) -> list[str]:
    """All faults of an exported graph.

    1. Standard ops only, of the opset that was asked for, and none whose shapes depend on data.
    2. Inputs and outputs by name, dtype and dynamic axis.
    3. What the family wants of each layer (`audit_layers`), and the softcap on a language model's logits.
    4. Products in the compute dtype, softmax and norms in float32.
    5. Pooling and recovery where the funnel says so.
    6. Every weight lies in one of these files; no large constant in the graph.
    7. Weights are quantized where the spec says so, in this number of bits (`audit_quantization`).
    8. Every value has the dtype and the rank that its op gives it.

    Args:
        role: what the graph does.
        model: the finished graph.
        family: of the checkpoint.
        architecture: what its config says.
        spec: what was to be exported.
        files: the files in which weights may lie.
    """
    signature = signatures_of(spec, architecture).get(role)
    if signature is None:
        return [f"no graph of {spec.task} is called {role}"]
    stage = stages_of(spec.funnel, architecture.num_hidden_layers)[role] if spec.task.has_past else None
    segments = stage.segments if stage else segments_of(spec.funnel, architecture.num_hidden_layers)
    steps = stage.steps if stage else [name for name in boundary_names(segments) if node_prefix(name) != name]
    ends = stage is None or stage.ends
    return [
        *_ops(model, spec),
        *_contract(model, signature),
        *layer_faults(
            model,
            family,
            architecture,
            segments,
            stage,
            spec.trimmed_layer(architecture.num_hidden_layers),
        ),
        *head_faults(model, architecture, capped=spec.task.generates and ends),
        *_dtypes(model, spec.dtype),
        *_funnel(model, segments, steps),
        *_weights(model, files),
        *quantization_faults(model, family, spec.quantization),
        *_types(model),
    ]


def audit(graphs: Mapping[str, BuiltGraph], family: Family, architecture: Architecture, spec: ExportSpec) -> None:
    """Fail graphs with faults: `ExportError` names all of them at once."""
    findings = [
        finding
        for role, built in graphs.items()
        for finding in (
            *find_faults(role, built.model, family, architecture, spec, _files(built)),
            *_sources(built),
        )
    ]
    if findings:
        raise ExportError(
            "the exported graph failed its audit:\n" + "\n".join(f"  - {finding}" for finding in findings),
            hint="please report this with the versions that `funnel-export doctor` prints",
        )


def _files(built: BuiltGraph) -> set[str]:
    return {source.tensor.file for source in built.sources.values()}


def _ops(model: ir.Model, spec: ExportSpec) -> Iterator[str]:
    opset = model.opset_imports.get("")
    if opset != spec.opset:
        yield f"the graph is of opset {opset}, not {spec.opset}"
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.name}: {node.domain}::{node.op_type} is not a standard op"
        if node.op_type in CONTROL_FLOW:
            yield f"{node.name}: {node.op_type} makes shapes depend on data"
    if model.functions:
        yield f"functions are left: {[f.name for f in model.functions.values()]}"


def _contract(model: ir.Model, signature: Signature) -> Iterator[str]:
    graph = model.graph
    wanted = len(signature.inputs), len(signature.outputs)
    if (len(graph.inputs), len(graph.outputs)) != wanted:
        yield f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs, not {wanted[0]} and {wanted[1]}"
        return
    for value, port in zip((*graph.inputs, *graph.outputs), signature.ports, strict=True):
        dtype = None if value.dtype is None else value.dtype.numpy().name
        if (value.name, dtype, _axes(value)) != (port.name, port.dtype, [*port.axes]):
            what = "input" if value.is_graph_input() else "output"
            yield f"{what} {port.name} is {value.name} {dtype} {_axes(value)}, not {port.dtype} {[*port.axes]}"


def _axes(value: ir.Value) -> list[Any]:
    return [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape or ()]


def _dtypes(model: ir.Model, dtype: Dtype) -> Iterator[str]:
    compute = COMPUTE_DTYPES[dtype]
    for node in model.graph:
        wanted = {"MatMul": compute, "Gemm": compute, "Softmax": ir.DataType.FLOAT, "ReduceMean": ir.DataType.FLOAT}
        if node.op_type not in wanted:
            continue
        product = node.op_type in ("MatMul", "Gemm")
        if product and prefix_of(node) == "model" and not any(producer(node.inputs[1], each) for each in WEIGHTS):
            continue  # RoPE's angles, in float32 always, are a product in some versions of transformers
        got = {value.dtype for value in node.inputs[: 2 if product else 1] if value}
        if got != {wanted[node.op_type]}:
            yield f"{node.name}: {node.op_type} of {sorted(str(d) for d in got)}, not {wanted[node.op_type]}"


def _funnel(model: ir.Model, segments: Sequence[Segment], steps: Sequence[str]) -> Iterator[str]:
    """Faults of pooling and recovery, `steps`, and layers that are missing."""
    values = {value.name for node in model.graph for value in node.outputs}
    prefixes = {prefix_of(node) for node in model.graph}
    found = [boundary_of(prefix) for prefix in sorted(prefixes) if boundary_of(prefix) != prefix]
    for boundary in dict.fromkeys([*steps, *found]):
        present = (boundary in values, boundary in found)
        if present != (boundary in steps,) * 2:
            funnel = ", ".join(str(segment.funnel) for segment in segments if segment.pooled) or None
            yield f"{boundary} and nodes under {node_prefix(boundary)}/: {present}, and the funnel is {funnel}"
    missing = [index for segment in segments for index in segment.layers if layer_name(index) not in prefixes]
    if missing:
        yield f"layers {missing} are not in the graph"


def _weights(model: ir.Model, files: Collection[str]) -> Iterator[str]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            yield f"{name} has no value"
        elif not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > LARGEST_CONSTANT:
            yield f"{name} puts {tensor.nbytes} bytes into the graph instead of referring to the checkpoint"
        elif isinstance(tensor, ir.ExternalTensor) and str(tensor.location) not in files:
            yield f"{name} refers to {tensor.location}, which is not a weight file of the bundle"


def _sources(built: BuiltGraph) -> Iterator[str]:
    """Faults of weights whose location is not that of their source."""
    for name, value in built.model.graph.initializers.items():
        tensor, source = value.const_value, built.sources.get(name)
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = (str(tensor.location), tensor.offset, tensor.length)
        if source is None or place != (source.tensor.file, source.tensor.offset, source.tensor.nbytes):
            yield f"{name} lies in {tensor.location}, {tensor.length} bytes from {tensor.offset}, not at its source"
    unused = sorted(built.sources.keys() - built.model.graph.initializers.keys())
    if unused:
        yield f"{', '.join(unused)}: a source, and no such weight in the graph"


def _types(model: ir.Model) -> Iterator[str]:
    try:
        onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as err:
        yield f"dtypes or shapes are not what the ops give: {str(err).strip()}"
