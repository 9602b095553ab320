"""Builds the graphs of a bundle: trace, assemble, refer to the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from funnel_export.bundle.ports import PortKind
from funnel_export.bundle.signature import Signature
from funnel_export.bundle.weights import DerivedFile, WeightSource
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.exporter.assemble import assemble
from funnel_export.exporter.skeleton import Skeleton, build_skeleton
from funnel_export.exporter.trace import forwards_of, trace
from funnel_export.exporter.weights import check_head, match_weights, refer_to_weights
from funnel_export.spec.export import ExportSpec


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph that is ready to be audited and written."""

    model: ir.Model
    sources: Mapping[str, WeightSource]
    """Source of each weight, by the name of its initializer."""
    kinds: Mapping[str, PortKind]
    """Kind of each input and output, by name."""


def parameters_of(checkpoint: Checkpoint, spec: ExportSpec) -> list[str]:
    """Names of the parameters of the model that is exported; see `build_graphs` for errors."""
    return list(_fitting_skeleton(checkpoint, spec).shapes)


def build_graphs(checkpoint: Checkpoint, spec: ExportSpec, derived: DerivedFile | None = None) -> dict[str, BuiltGraph]:
    """The ONNX graphs of a checkpoint by role; their weights refer to the checkpoint's files.

    Args:
        checkpoint: the checkpoint.
        spec: what the graphs compute.
        derived: the record of the checkpoint's weight file if the export has written it.

    Raises:
        CheckpointError: if the weights do not fit the config.
    """
    skeleton = _fitting_skeleton(checkpoint, spec)
    graphs = {}
    forwards = forwards_of(skeleton, spec)
    for role, traced in trace(skeleton, forwards, spec.opset).items():
        model, parameters = assemble(traced, spec.dtype)
        _name_axes(model, forwards[role].signature)
        sources = refer_to_weights(model, parameters, checkpoint, derived)
        graphs[role] = BuiltGraph(model, sources, forwards[role].signature.kinds)
    return graphs


def _fitting_skeleton(checkpoint: Checkpoint, spec: ExportSpec) -> Skeleton:
    """The model that is exported; checked against the weights before a trace, which takes seconds."""
    if spec.task.generates:
        check_head(checkpoint)
    skeleton = build_skeleton(checkpoint.family, checkpoint.config, spec)
    match_weights(skeleton.shapes, checkpoint)
    return skeleton


def _name_axes(model: ir.Model, signature: Signature) -> None:
    """Give the outputs' axes their declared names; a trace calls some of them `slots + 1`."""
    for value, port in zip(model.graph.outputs, signature.outputs, strict=True):
        assert value.shape is not None
        value.shape = ir.Shape([*port.axes, *list(value.shape)[len(port.axes) :]])
