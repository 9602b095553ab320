"""Run as a script: the command line, with a graph that is ready, so that no time goes into tracing it again."""

import sys

import onnx_ir as ir

from funnel_export.bundle.manifest import MODEL
from funnel_export.bundle.signature import signatures_of
from funnel_export.bundle.weights import Stored
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.cli import main
from funnel_export.exporter import build
from funnel_export.spec.export import ExportSpec


def ready(checkpoint: Checkpoint, spec: ExportSpec, _: object) -> dict[str, build.BuiltGraph]:
    """The graph that the first argument names, as if it had been traced."""
    model = ir.load(GRAPH)
    weights = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    sources = {str(value.name): Stored(checkpoint.find(str(value.name))) for value in weights}
    return {MODEL: build.BuiltGraph(model, sources, signatures_of(spec, checkpoint.architecture)[MODEL].kinds)}


if __name__ == "__main__":
    GRAPH = sys.argv.pop(1)
    build.build_graphs = ready
    main()
