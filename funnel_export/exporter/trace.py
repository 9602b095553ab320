"""Traces a skeleton: the outline of its graph, and its distinct parts."""

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from funnel_export.bundle.signature import INPUTS, output_of
from funnel_export.exporter.outline import Call, Outline, Survey, compare_surveys
from funnel_export.exporter.skeleton import Skeleton
from funnel_export.exporter.translate import Operand, Piece, translate
from funnel_export.funnel import patch_forward, unpatch_forward
from funnel_export.funnel.model import LayerPart
from funnel_export.spec.choices import Logits
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced model: the outline with marker nodes, and the parts that replace them."""

    outline: ir.Model
    """Has the inputs and outputs of the bundle; parameters are initializers without values, named as in the model."""
    parts: dict[str, "TracedPart"]
    """Parts by the names of their marker nodes."""


@dataclass(frozen=True, slots=True)
class TracedPart:
    """A part of the forward as a separate graph."""

    body: ir.Model
    """Its inputs are the operands, then `weights`; it has one output. Parts that compute the same share it."""
    weights: tuple[str, ...]
    """Names of the model's parameters that are its last inputs."""


def trace(skeleton: Skeleton, spec: ExportSpec) -> Trace:
    """Trace a model with a funnel.

    Args:
        skeleton: the model; it is modified and cannot be used afterwards.
        spec: what to export; its funnel must fit the model.

    Raises:
        CheckpointError: if the model does not support a funnel.
    """
    model, mode = skeleton.model, skeleton.mode
    calls = _calls(skeleton, spec.funnel)
    representatives: dict[object, Call] = {}
    for call in calls.values():
        representatives.setdefault(call.signature(), call)
    patch_forward(model, spec.funnel, Outline(), last_only=spec.logits is Logits.LAST)
    base = skeleton.base
    layers = list(base.layers)
    del base.layers  # as a plain list, the layers add no parameters to the outline
    base.layers = layers
    output = output_of(spec).name
    inputs = {port.name: Operand(torch.int64, port.axes) for port in INPUTS}
    main = Piece(_Outputs(model, output), inputs, (output,))
    graph, *traced = translate([main, *map(_piece, representatives.values())], spec.opset, mode)
    bodies = dict(zip(representatives, traced, strict=True))
    for call, body in zip(representatives.values(), traced, strict=True):
        _share_lengths(body, call)
        _weights_to_inputs(body, call)
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("wrapped.")
    prefix = skeleton.base_prefix
    parts = {
        name: TracedPart(bodies[call.signature()], tuple(f"{prefix}{name}.{w}" for w in _parameter_names(call)))
        for name, call in calls.items()
    }
    return Trace(graph, parts)


def _calls(skeleton: Skeleton, spec: FunnelSpec | None) -> dict[str, Call]:
    """The call of each part, from two runs whose batch, length and number of slots differ; each has several slots."""
    model, mode, stride = skeleton.model, skeleton.mode, 1 if spec is None else spec.stride
    sizes = ((2, 4 * stride + 3), (3, 6 * stride + 4))
    if spec is not None and stride > 1:
        slots = tuple(spec.num_slots(length) for _, length in sizes)
        assert len({slots, *zip(*sizes, strict=True)}) == 3, "different axes need different pairs of sizes"
    surveys = []
    for batch, length in sizes:
        survey = Survey()
        patch_forward(model, spec, survey)
        with mode, torch.no_grad():
            ids = torch.ones(batch, length, dtype=torch.int64)
            model(input_ids=ids, attention_mask=ids, use_cache=False)
        unpatch_forward(model)
        surveys.append(survey)
    one, other = surveys
    return compare_surveys(one, other, skeleton.family.per_layer_attributes)


class _Outputs(nn.Module):
    """The model with two tensor inputs and one tensor output."""

    def __init__(self, wrapped: nn.Module, output: str) -> None:
        super().__init__()
        self.wrapped, self.output = wrapped, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = getattr(
            self.wrapped(input_ids=input_ids, attention_mask=attention_mask, use_cache=False), self.output
        )
        return out


class _PartModule(nn.Module):
    """A part as a module, so that a layer's parameters become inputs of its graph."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.layer = call.part.layer if isinstance(call.part, LayerPart) else None

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call.part(*tensors)


def _piece(call: Call) -> Piece:
    return Piece(_PartModule(call), {f"operand_{i}": o for i, o in enumerate(call.operands)}, ("result",))


def _weights_to_inputs(body: ir.Model, call: Call) -> None:
    """Make a layer's weights inputs of its graph, so that no optimizer folds them."""
    for name in _parameter_names(call):
        value = body.graph.initializers.pop(f"layer.{name}")
        value.const_value = None
        body.graph.inputs.append(value)


def _share_lengths(body: ir.Model, call: Call) -> None:
    """Take the size of each dynamic axis from the last operand that has this axis.

    The first operand, the hidden states, differs in every layer. The last ones, masks and angles, are the same for many
    layers, so these layers then share the nodes that compute sizes.
    """
    last = {axis: (i, k) for i, o in enumerate(call.operands) for k, axis in enumerate(o.axes)}
    operands = dict(zip(body.graph.inputs, call.operands, strict=False))  # weights follow
    for node in body.graph:
        operand = operands.get(node.inputs[0]) if node.op_type == "Shape" and node.inputs[0] else None
        if operand is None or "start" not in node.attributes:
            continue
        start = node.attributes["start"].as_int()
        if node.attributes["end"].as_int() == start + 1 and isinstance(operand.axes[start], str):
            index, axis = last[operand.axes[start]]
            node.replace_input_with(0, body.graph.inputs[index])
            node.attributes["start"], node.attributes["end"] = (
                ir.AttrInt64("start", axis),
                ir.AttrInt64("end", axis + 1),
            )


def _parameter_names(call: Call) -> list[str]:
    return [name for name, _ in call.part.layer.named_parameters()] if isinstance(call.part, LayerPart) else []
