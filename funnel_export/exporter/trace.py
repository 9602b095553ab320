"""From a checkpoint's config to one ONNX graph, without a single weight in memory."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding

from funnel_export.config import Dtype, FunnelSpec, Task
from funnel_export.errors import CheckpointError, ExportError
from funnel_export.exporter.outline import Call, Outline, Survey, compare_surveys
from funnel_export.exporter.translate import Operand, Piece, translate
from funnel_export.funnel import TASK_CLASSES, patch_forward, unpatch_forward
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


def trace(config: dict[str, Any], task: Task, spec: FunnelSpec | None, dtype: Dtype, opset: int) -> Trace:
    """Trace the model that `config` describes.

    Args:
        config: a Gemma2 `config.json`.
        task: which of the four classes to build.
        spec: the funnel, or None for the dense model.
        dtype: compute dtype.
        opset: ONNX opset version.

    Raises:
        CheckpointError: if the config does not describe a Gemma2 that can be exported.
        SpecError: if the funnel does not fit.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # buffers have values
    model = _fake_model(config, task, getattr(torch, dtype), mode)
    if spec is not None:
        spec.validate(model.config.num_hidden_layers)
        spec.validate_task(task)
    calls = _calls(model, spec, mode)
    representatives: dict[object, Call] = {}
    for call in calls.values():
        representatives.setdefault(call.signature(), call)
    patch_forward(model, spec, Outline())
    base = getattr(model, "model", model)
    layers = list(base.layers)
    del base.layers  # a plain list is not lifted into the trace: the outline needs no layer's parameters
    base.layers = layers
    whole = Operand(torch.int64, (BATCH, SEQUENCE))
    main = Piece(_Outputs(model, OUTPUTS[task]), dict.fromkeys(INPUTS, whole), (OUTPUTS[task],))
    graph, *traced = translate([main, *map(_piece, representatives.values())], opset, mode)
    bodies = dict(zip(representatives, traced, strict=True))
    for call, body in zip(representatives.values(), traced, strict=True):
        _share_lengths(body, call)
        _weights_to_inputs(body, call)
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("wrapped.")
    prefix = "" if base is model else "model."
    parts = {
        name: TracedPart(bodies[call.signature()], tuple(f"{prefix}{name}.{w}" for w in _parameter_names(call)))
        for name, call in calls.items()
    }
    return Trace(graph, parts)


def _calls(model: Any, spec: FunnelSpec | None, mode: FakeTensorMode) -> dict[str, Call]:
    """What goes into each part, from two runs: long enough for several slots, and of other sizes in every axis."""
    stride = 1 if spec is None else spec.stride
    surveys = []
    for batch, length in ((2, 4 * stride + 3), (3, 6 * stride + 4)):
        survey = Survey()
        patch_forward(model, spec, survey)
        with mode, torch.no_grad():
            ids = torch.ones(batch, length, dtype=torch.int64)
            model(input_ids=ids, attention_mask=ids, use_cache=False)
        unpatch_forward(model)
        surveys.append(survey)
    return compare_surveys(*surveys)


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


def _fake_model(config: dict[str, Any], task: Task, dtype: torch.dtype, mode: FakeTensorMode) -> Any:
    """The Hugging Face model with parameters that have shapes only, and buffers that have values."""
    try:
        built = Gemma2Config.from_dict(copy.deepcopy(config))
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as err:
        raise CheckpointError("config.json does not describe a Gemma2", got=err, wanted="a Gemma2Config") from err
    built._attn_implementation = "eager"
    rope_type = cast(dict[str, Any], built.rope_parameters)["rope_type"]
    if rope_type in ("dynamic", "longrope"):
        raise CheckpointError(
            "this RoPE depends on the length of the text, which no graph can hold",
            got=f"rope_type {rope_type!r}",
            wanted="default, linear, llama3 or yarn",
        )
    if task is Task.TEXT_CLASSIFICATION and built.pad_token_id is None:
        raise CheckpointError(
            "text classification reads the last token that is not padding",
            got="no pad_token_id in config.json",
            wanted="a pad_token_id",
        )
    with _default_dtype(dtype), mode:
        model: Any = TASK_CLASSES[task](built)
        model.eval().requires_grad_(False)
    base = getattr(model, "model", model)
    base.rotary_emb = Gemma2RotaryEmbedding(built)
    base.embed_tokens.embed_scale = torch.tensor(base.embed_tokens.scalar_embed_scale, dtype=dtype)
    unreal = [name for name, buffer in model.named_buffers() if isinstance(buffer, FakeTensor)]
    if unreal:
        raise ExportError("a buffer of the model has no value", got=unreal, wanted="a version of transformers >= 5.10")
    return model


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _piece(call: Call) -> Piece:
    return Piece(_PartModule(call), {f"operand_{i}": o for i, o in enumerate(call.operands)}, ("result",))


def _weights_to_inputs(body: ir.Model, call: Call) -> None:
    """Make a layer's weights inputs of its graph: whatever optimizes it cannot fold them."""
    for name in _parameter_names(call):
        value = body.graph.initializers.pop(f"layer.{name}")
        value.const_value = None
        body.graph.inputs.append(value)


def _share_lengths(body: ir.Model, call: Call) -> None:
    """Read each dynamic axis off the last operand that has it.

    Hidden states come first and are new in every layer; masks and angles come last and serve many, so that layers then
    share the shapes that they compute.
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
