"""Traces that tests share: most exports of a session are of the same few models, and tracing is nearly all they take.

A trace depends on the model's class, its configuration and what is exported, not on the weights. What tests of tracing
itself need traced anew, they ask for by the marker `traces`.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from funnel_export.exporter import build
from funnel_export.exporter.skeleton import Skeleton
from funnel_export.spec.export import ExportSpec

_trace, _assemble = build.trace, build.assemble
_VARIABLE = "FUNNEL_EXPORT_TEST_TRACES"
if _VARIABLE not in os.environ:  # the first process of a run makes the folder, and removes it at its end
    _OWN = tempfile.TemporaryDirectory(prefix="funnel-export-traces-")
    os.environ[_VARIABLE] = _OWN.name
FOLDER = Path(os.environ[_VARIABLE])


def share_traces() -> None:
    """Trace and assemble each model once."""
    build.trace, build.assemble = _keep, _assemble_once  # type: ignore[assignment]


def trace_anew(monkeypatch: Any) -> None:
    """Trace every model, for one test."""
    monkeypatch.setattr(build, "trace", _trace)
    monkeypatch.setattr(build, "assemble", _assemble)


def _keep(skeleton: Skeleton, spec: ExportSpec) -> tuple[Skeleton, ExportSpec]:
    return skeleton, spec


def _assemble_once(wanted: tuple[Skeleton, ExportSpec]) -> tuple[ir.Model, list[ir.Value]]:
    skeleton, spec = wanted
    config = skeleton.model.config.to_json_string(use_diff=False)
    key = hashlib.sha256(f"{type(skeleton.model)} {config} {spec}".encode()).hexdigest()
    path = FOLDER / f"{key}.onnx"
    if not path.exists():
        model, parameters = _assemble(_trace(skeleton, spec))
        model.metadata_props["parameters"] = "\n".join(str(value.name) for value in parameters)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(ir.to_proto(model).SerializeToString())
        fresh.replace(path)
    model = ir.load(path)
    names = model.metadata_props.pop("parameters").split("\n")
    inputs = {value.name: value for value in model.graph.inputs}
    return model, [inputs[name] for name in names]
