"""Traces a skeleton: the outline of its graph, and its distinct parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from funnel_export.bundle.manifest import MODEL
from funnel_export.bundle.signature import PAST_SEQUENCE, PAST_SLOTS, Signature, signatures_of
from funnel_export.exporter.outline import Call, Outline, Survey, compare_surveys
from funnel_export.exporter.skeleton import Skeleton
from funnel_export.exporter.translate import Operand, Piece, translate
from funnel_export.families.registry import family_of
from funnel_export.funnel import is_patched, patch_forward, unpatch_forward
from funnel_export.funnel.maps import maps_of
from funnel_export.funnel.parts import ModulePart, PartRunner
from funnel_export.funnel.stages import StageModule
from funnel_export.spec.choices import Logits
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import MAPS
from funnel_export.spec.profile import BATCH, SEQUENCE
from funnel_export.spec.stages import Stage, stages_of


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
    """Its inputs are the operands, then `weights`; its first output is hidden states. Equal parts share it."""
    weights: tuple[str, ...]
    """Names of the model's parameters that are its last inputs."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A computation of a model, to be traced with different runners of its parts."""

    signature: Signature
    module: Callable[[PartRunner], nn.Module]
    """Makes a module with the signature's inputs and outputs, whose attribute `wrapped` is the model."""
    sizes: tuple[Mapping[str, int], Mapping[str, int]]
    """Two sizes of every dynamic axis of the inputs; no two axes may have the same two."""

    @property
    def inputs(self) -> dict[str, Operand]:
        """Dtypes and axes of the inputs by name."""
        return {port.name: Operand(getattr(torch, port.dtype), port.axes) for port in self.signature.inputs}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(port.name for port in self.signature.outputs)


def forwards_of(skeleton: Skeleton, spec: ExportSpec) -> dict[str, Forward]:
    """The computation of each graph of a bundle, by role."""
    signatures = signatures_of(spec, skeleton.family.read_architecture(skeleton.config))
    if not spec.task.has_past:
        return {MODEL: _single_pass(skeleton, spec, signatures[MODEL])}
    stages = stages_of(spec.funnel, skeleton.model.config.num_hidden_layers)
    return {role: _stage(skeleton, stages[role], signature) for role, signature in signatures.items()}


def _single_pass(skeleton: Skeleton, spec: ExportSpec, signature: Signature) -> Forward:
    stride = 1 if spec.funnel is None else spec.funnel.stride
    sizes = tuple({BATCH: batch, SEQUENCE: length} for batch, length in ((2, 4 * stride + 3), (3, 6 * stride + 4)))
    if spec.funnel is not None and stride > 1:
        slots = tuple(spec.funnel.num_slots(each[SEQUENCE]) for each in sizes)
        pairs = zip(*(each.values() for each in sizes), strict=True)
        assert len({slots, *pairs}) == 3, "different axes need different pairs of sizes"
    output = signature.outputs[0].name
    make = partial(_Outputs, skeleton.model, spec, output)
    return Forward(signature, make, (sizes[0], sizes[1]))


def _stage(skeleton: Skeleton, stage: Stage, signature: Signature) -> Forward:
    names = [port.name for port in signature.inputs]
    make = partial(StageModule, skeleton.model, skeleton.family, stage, names)
    axes = dict.fromkeys(axis for port in signature.inputs for axis in port.axes if isinstance(axis, str))
    small, large = ({axis: a + b * number for number, axis in enumerate(axes)} for a, b in ((2, 1), (3, 2)))
    # Layers with a sliding window read no more entries of the past than there are: the one size is below the window.
    windows = skeleton.family.windows(skeleton.family.read_architecture(skeleton.config))
    for axis in axes.keys() & {PAST_SEQUENCE, PAST_SLOTS}:
        small[axis], large[axis] = 1, large[axis] + max(windows, default=0)
    return Forward(signature, make, (small, large))


def trace(skeleton: Skeleton, forwards: Mapping[str, Forward], opset: int) -> dict[str, Trace]:
    """Trace computations of a model, all in one call of torch's exporter.

    Args:
        skeleton: the model; it is modified and cannot be used afterwards.
        forwards: the computations by role.
        opset: ONNX opset version.

    Raises:
        CheckpointError: if the model does not support a funnel.
    """
    calls = {role: _calls(skeleton, forward) for role, forward in forwards.items()}
    representatives: dict[object, Call] = {}
    for call in (call for group in calls.values() for call in group.values()):
        representatives.setdefault(call.signature(), call)
    base = skeleton.base
    _hide_parameters_of_parts(base)
    outlines = [Piece(each.module(Outline()), each.inputs, each.outputs) for each in forwards.values()]
    pieces = translate([*outlines, *map(_piece, representatives.values())], opset, skeleton.mode)
    traced = pieces[len(outlines) :]
    bodies = dict(zip(representatives, traced, strict=True))
    for call, body in zip(representatives.values(), traced, strict=True):
        _share_lengths(body, call)
        _weights_to_inputs(body, call)
    prefix = skeleton.base_prefix
    traces = {}
    for (role, group), graph in zip(calls.items(), pieces, strict=False):  # the parts follow
        for value in list(graph.graph.initializers.values()):
            value.name = str(value.name).removeprefix("wrapped.")
        parts = {
            name: TracedPart(bodies[call.signature()], tuple(f"{prefix}{w}" for w in _weights(call)))
            for name, call in group.items()
        }
        traces[role] = Trace(graph, parts)
    return traces


def _hide_parameters_of_parts(base: Any) -> None:
    """Make the layers and maps of a model plain attributes, so that they add no parameters to the outline."""
    layers, maps = list(base.layers), maps_of(base)
    del base.layers
    base.layers = layers
    if maps is not None:
        delattr(base, MAPS)
        object.__setattr__(base, MAPS, maps)


def _calls(skeleton: Skeleton, forward: Forward) -> dict[str, Call]:
    """The call of each part, from two runs in which the sizes of the dynamic axes differ."""
    surveys = []
    for sizes in forward.sizes:
        survey = Survey()
        module = forward.module(survey)
        with skeleton.mode, torch.no_grad():
            shapes = [[a if isinstance(a, int) else sizes[a] for a in each.axes] for each in forward.inputs.values()]
            dtypes = [each.dtype for each in forward.inputs.values()]
            module(*(torch.ones(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)))
        surveys.append(survey)
    one, other = surveys
    return compare_surveys(one, other, skeleton.family.per_layer_attributes)


class _Outputs(nn.Module):
    """A single pass of the model, with two tensor inputs and one tensor output."""

    def __init__(self, wrapped: Any, spec: ExportSpec, output: str, run: PartRunner) -> None:
        super().__init__()
        self.wrapped, self.output = wrapped, output
        if is_patched(family_of(wrapped)[0].base_of(wrapped)):
            unpatch_forward(wrapped)
        patch_forward(wrapped, spec.funnel, run, last_only=spec.logits is Logits.LAST)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = getattr(
            self.wrapped(input_ids=input_ids, attention_mask=attention_mask, use_cache=False), self.output
        )
        return out


class _PartModule(nn.Module):
    """A part as a module, so that its parameters become inputs of its graph."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.inner = call.part.module if isinstance(call.part, ModulePart) else None

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.call.part(*tensors)


def _piece(call: Call) -> Piece:
    results = ("result",) if call.results == 1 else tuple(f"result_{i}" for i in range(call.results))
    return Piece(_PartModule(call), {f"operand_{i}": o for i, o in enumerate(call.operands)}, results)


def _weights_to_inputs(body: ir.Model, call: Call) -> None:
    """Make a part's weights inputs of its graph, so that no optimizer folds them."""
    for name in _parameter_names(call):
        value = body.graph.initializers.pop(f"inner.{name}")
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
    return [name for name, _ in call.part.module.named_parameters()] if isinstance(call.part, ModulePart) else []


def _weights(call: Call) -> list[str]:
    """Names of a part's parameters in the model without its head."""
    return [f"{call.part.path}.{n}" for n in _parameter_names(call)] if isinstance(call.part, ModulePart) else []
