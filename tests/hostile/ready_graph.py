"""Run as a script: the command line, with a graph that is ready, so that no time goes into tracing it again."""

import sys

import onnx_ir as ir

from funnel_export.cli import main
from funnel_export.exporter import build

if __name__ == "__main__":
    graph = sys.argv.pop(1)
    build.build_graph = lambda *_: ir.load(graph)  # type: ignore[assignment]
    main()
