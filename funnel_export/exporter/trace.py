"""From a checkpoint's config to one ONNX graph, without a single weight in memory."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from funnel_export.config import FunnelSpec, Task
from funnel_export.exporter.outline import Call, Outline
from funnel_export.exporter.skeleton import Skeleton
from funnel_export.funnel import patch_forward
from funnel_export.funnel.model import LayerPart

BATCH, SEQUENCE = "batch_size", "sequence_length"
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = {task: "last_hidden_state" if task is Task.FEATURE_EXTRACTION else "logits" for task in Task}


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced model: the outline with its marker nodes, and the parts to fill in."""

    outline: ir.Model
    """Inputs and outputs as the bundle has them; parameters are initializers without values, by their model names."""
    parts: dict[str, "TracedPart"]
    """By the name that the marker node carries."""


@dataclass(frozen=True, slots=True)
class TracedPart:
    """A part of the forward as a graph of its own."""

    body: ir.Model
    """Inputs: the operands, then `weights`; one output. Shared by every part that computes the same."""
    weights: tuple[str, ...]
    """Names of the model's parameters that go in after the operands."""


def trace(skeleton: Skeleton, task: Task, spec: FunnelSpec | None, opset: int) -> Trace:
    """Trace a model with a funnel.

    Args:
        skeleton: the model, which is of no other use afterwards.
        task: which of the four classes it is of.
        spec: a funnel that fits it, or None for the dense model.
        opset: ONNX opset version.

    Raises:
        CheckpointError: if the model cannot carry a funnel.
    """
    outline = Outline()
    model, mode = skeleton.model, skeleton.mode
    patch_forward(model, spec, outline)
    base = getattr(model, "model", model)
    layers = list(base.layers)
    del base.layers  # a plain list is not lifted into the trace: the outline needs no layer's parameters
    base.layers = layers
    with mode:
        ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
    axes = {0: BATCH, 1: SEQUENCE}
    wrapper = _Outputs(model, OUTPUTS[task])
    graph = _to_onnx(wrapper, (ids, mask), (axes, axes), opset, list(INPUTS), [OUTPUTS[task]])
    _rename_initializers(graph, wrapper)
    prefix = "" if base is model else "model."
    bodies: dict[object, ir.Model] = {}
    parts = {}
    for name, call in outline.calls.items():
        key = call.signature()
        if key not in bodies:
            bodies[key] = _trace_part(call, mode, opset)
        weights = tuple(f"{prefix}{name}.{w}" for w in _parameter_names(call))
        parts[name] = TracedPart(bodies[key], weights)
    return Trace(graph, parts)


class _Outputs(nn.Module):
    """The model with plain inputs and its one output."""

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


def _trace_part(call: Call, mode: FakeTensorMode, opset: int) -> ir.Model:
    """Trace one part on its own; every dynamic axis of its operands is dynamic here, by the same expression."""
    names = {axis: f"n{i}" for i, axis in enumerate(_dynamic_axes(call))}
    with mode:
        tensors = tuple(
            torch.ones([2 + list(names).index(a) if isinstance(a, str) else a for a in o.axes], dtype=o.dtype)
            for o in call.operands
        )
    axes = tuple({i: names[a] for i, a in enumerate(o.axes) if isinstance(a, str)} for o in call.operands)
    inputs = [f"operand_{i}" for i in range(len(tensors))]
    model = _to_onnx(_PartModule(call), tensors, (axes,), opset, inputs, ["result"])
    parameters = [f"layer.{name}" for name in _parameter_names(call)]
    for name in parameters:  # weights as inputs: whatever optimizes this body cannot fold them
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return model


def _dynamic_axes(call: Call) -> list[str]:
    return list(dict.fromkeys(a for o in call.operands for a in o.axes if isinstance(a, str)))


def _parameter_names(call: Call) -> list[str]:
    return [name for name, _ in call.part.layer.named_parameters()] if isinstance(call.part, LayerPart) else []


def _to_onnx(
    module: nn.Module, args: tuple[Tensor, ...], axes: Any, opset: int, inputs: list[str], outputs: list[str]
) -> ir.Model:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            custom_translation_table={torch.ops.aten.softmax.int: _softmax},
        )
    assert program is not None
    model: ir.Model = program.model
    return model


def _softmax(x: Any, dim: int, dtype: int = -1) -> Any:
    """Softmax in the dtype that was asked for; torch's own translation computes in the input's and casts after."""
    return op.Softmax(cast(Any, op.Cast(x, to=dtype) if dtype != -1 else x), axis=dim)


def _rename_initializers(graph: ir.Model, wrapper: nn.Module) -> None:
    """Name initializers as the model names them; tied parameters by the first of their names."""
    first = {id(p): name for name, p in wrapper.named_parameters()}
    names = {name: first[id(p)] for name, p in wrapper.named_parameters(remove_duplicate=False)}
    for value in list(graph.graph.initializers.values()):
        name = str(value.name)
        value.name = names.get(name, name).removeprefix("wrapped.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes about torchvision and axis names, which no user can act on, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
