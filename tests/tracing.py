"""Traces that tests share: most exports of a session are of the same few models, and tracing is nearly all they take.

A trace depends on the model's class, its configuration and what is exported, not on the weights. Its parts
(layers, pooling, recovery) depend on less, so further traces take equal parts from earlier ones. Tests of tracing
itself have the marker `traces`, and trace all anew.
"""

import copy
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry

from funnel_export.exporter import build
from funnel_export.exporter import trace as tracing
from funnel_export.exporter.skeleton import Skeleton
from funnel_export.exporter.trace import Forward
from funnel_export.exporter.translate import Piece
from funnel_export.funnel.parts import LayerPart
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.stages import Stage

_trace, _assemble, _translate = build.trace, build.assemble, tracing.translate
_load_operators = ONNXRegistry.from_torchlib
_VARIABLE = "FUNNEL_EXPORT_TEST_TRACES"
if _VARIABLE not in os.environ:  # the first process of a run makes the folder, and removes it at its end
    _OWN = tempfile.TemporaryDirectory(prefix="funnel-export-traces-")
    os.environ[_VARIABLE] = _OWN.name
FOLDER = Path(os.environ[_VARIABLE])


def share_traces() -> None:
    """Trace and assemble each model once, and load torch's translations of operators once."""
    ONNXRegistry.from_torchlib = staticmethod(_copy_operators)  # type: ignore[assignment]
    build.trace, build.assemble = _keep, _assemble_once  # type: ignore[assignment]
    tracing.translate = _translate_once


def trace_anew(monkeypatch: Any) -> None:
    """Trace every model, for one test."""
    monkeypatch.setattr(build, "trace", _trace)
    monkeypatch.setattr(build, "assemble", _assemble)
    monkeypatch.setattr(tracing, "translate", _translate)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", _load_operators)


@functools.cache
def _operators(opset: int) -> ONNXRegistry:
    return _load_operators(opset)


def _copy_operators(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
    """A registry for one export, which adds its own translations."""
    registry = copy.copy(_operators(opset_version))
    registry.functions = {target: [*found] for target, found in registry.functions.items()}
    return registry


def _keep(skeleton: Skeleton, forwards: dict[str, Forward], opset: int) -> dict[str, "_Wanted"]:
    wanted = _Wanted(skeleton, forwards, opset)
    return {role: replace(wanted, role=role) for role in forwards}


@dataclass(frozen=True)
class _Wanted:
    """A graph that may have been traced before, with those that are traced together with it."""

    skeleton: Skeleton
    forwards: dict[str, Forward]
    opset: int
    role: str = ""

    def path(self, role: str) -> Path:
        config = self.skeleton.model.config.to_json_string(use_diff=False)
        module: Any = self.forwards[role].module  # a partial of a class
        computed = [_without_quantization(each) for each in module.args if isinstance(each, ExportSpec | Stage)]
        ports = self.forwards[role].signature
        what = f"{type(self.skeleton.model)} {config} {computed} {ports} {self.opset}"
        key = hashlib.sha256(what.encode()).hexdigest()
        return FOLDER / f"{key}.onnx"


def _without_quantization(spec: ExportSpec | Stage) -> ExportSpec | Stage:
    """What a trace depends on: codes take the place of weights after the assembly."""
    return replace(spec, quantization=None) if isinstance(spec, ExportSpec) else spec


def _assemble_once(wanted: _Wanted, dtype: Dtype) -> tuple[ir.Model, list[ir.Value]]:
    path = wanted.path(wanted.role)
    if not path.exists():
        for role, traced in _trace(wanted.skeleton, wanted.forwards, wanted.opset).items():
            model, parameters = _assemble(traced, dtype)
            model.metadata_props["parameters"] = "\n".join(str(value.name) for value in parameters)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(ir.to_proto(model).SerializeToString())
            fresh.replace(wanted.path(role))
    model = ir.load(path)
    names = [name for name in model.metadata_props.pop("parameters").split("\n") if name]
    inputs = {value.name: value for value in model.graph.inputs}
    return model, [inputs[name] for name in names]


_PARTS: dict[object, ir.Model] = {}
"""Translated parts of this process, by what they depend on."""
OUTSIDE = {
    *("architectures", "final_logit_softcapping", "funnel", "id2label", "label2id", "layer_types", "num_hidden_layers"),
    *("num_labels", "pad_token_id", "tie_word_embeddings", "vocab_size"),
}
"""Keys of a model's config that the computation of a layer does not depend on; its type of attention is in the call."""


def _translate_once(pieces: Sequence[Piece], opset: int, mode: FakeTensorMode) -> list[ir.Model]:
    keys = [_key(piece, opset) for piece in pieces]
    new = [index for index, key in enumerate(keys) if key is None or key not in _PARTS]
    translated = dict(zip(new, _translate([pieces[index] for index in new], opset, mode), strict=True))
    _PARTS.update({keys[index]: model.clone() for index, model in translated.items() if keys[index] is not None})
    return [translated.get(index) or _PARTS[key].clone() for index, key in enumerate(keys)]


def _key(piece: Piece, opset: int) -> object:
    """What the translation of a part depends on, apart from weights; None for an outline and for parts with maps."""
    call = getattr(piece.module, "call", None)
    part: Any = getattr(call, "part", None)
    if isinstance(part, LayerPart):
        config = part.module.self_attn.config
        read = sorted((name, str(value)) for name, value in config.to_dict().items() if name not in OUTSIDE)
        types = [(name, type(module)) for name, module in part.module.named_modules()]
        return repr((opset, call.signature(), part.kwargs, read, config._attn_implementation, types))
    if isinstance(part, functools.partial):
        spec = replace(part.keywords["spec"], pool_layer=0, recover_layer=1)
        return repr((opset, part.func.__qualname__, spec, call.operands, call.results))
    return None
