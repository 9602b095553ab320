"""`inspect`: show the contents of a bundle."""

import json
import os
from dataclasses import dataclass

from funnel_export.bundle.engine import products_of_engines
from funnel_export.bundle.load import Bundle, Graph, load_bundle
from funnel_export.bundle.manifest import MODEL


@dataclass(frozen=True, slots=True)
class Inspection:
    """A bundle and the findings of an audit of its graphs."""

    bundle: Bundle
    audits: dict[str, list[str]]
    """The faults of each graph, by role; empty lists for bundles that `export` made."""

    def to_json(self) -> str:
        """The manifest, the audit, what engines made of quantized products and the predicted savings: a JSON object."""
        from funnel_export.latency.operations import predictions

        audit = [
            fault if role == MODEL else f"{role}: {fault}" for role, faults in self.audits.items() for fault in faults
        ]
        manifest = self.bundle.manifest.model_dump(mode="json")
        engines = {
            name: {} if made is None else made.facts() for name, made in products_of_engines(self.bundle).items()
        }
        return json.dumps(
            {"manifest": manifest, "audit": audit, "engines": engines, "predicted": predictions(self.bundle)}
        )

    def to_text(self) -> str:
        """The same as text, with a drawing of the funnel."""
        from funnel_export.report.text import describe_bundle

        return describe_bundle(self.bundle, self.audits)


def inspect(bundle: Bundle | str | os.PathLike[str]) -> Inspection:
    """Open a bundle and audit its graphs.

    Raises:
        BundleError: if the bundle is damaged.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    return Inspection(opened, {role: _audit(opened, graph) for role, graph in opened.graphs.items()})


def describe_graphs(bundle: Bundle | str | os.PathLike[str]) -> dict[str, str]:
    """The graphs of a bundle by role, each as text without weights.

    Raises:
        BundleError: if the bundle is damaged.
    """
    opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    import onnx_ir as ir

    from funnel_export.exporter.contract import describe_contract

    return {role: describe_contract(ir.load(graph.path)) for role, graph in opened.graphs.items()}


def _audit(bundle: Bundle, graph: Graph) -> list[str]:
    import onnx_ir as ir

    from funnel_export.exporter.audit import find_faults

    files = {weight.file for weight in bundle.manifest.weights}
    return find_faults(graph.role, ir.load(graph.path), bundle.family, bundle.architecture, bundle.spec, files)
