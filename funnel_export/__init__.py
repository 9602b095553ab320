"""Gemma models with a sequence funnel: exported, compiled and proven equal to eager PyTorch.

Importing the package loads neither torch nor a runtime; the names below load what they need when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funnel_export.bundle.load import Bundle, load_bundle
    from funnel_export.commands.adapt import adapt
    from funnel_export.commands.bench import bench
    from funnel_export.commands.check import check
    from funnel_export.commands.compile import compile_bundle
    from funnel_export.commands.evaluate import evaluate
    from funnel_export.commands.export import export
    from funnel_export.commands.fit import fit
    from funnel_export.commands.generate import Generated, generate
    from funnel_export.commands.package import package
    from funnel_export.commands.quantize import quantize
    from funnel_export.commands.transplant import transplant
    from funnel_export.errors import (
        BundleError,
        CheckpointError,
        DataError,
        ExportError,
        FunnelExportError,
        FunnelExportWarning,
        SpecError,
        TargetRefusedError,
        TargetUnavailableError,
    )
    from funnel_export.funnel import FunnelCache, apply_funnel, remove_funnel
    from funnel_export.runtime.batch import Batch
    from funnel_export.runtime.model import FunnelModelForCausalLM
    from funnel_export.runtime.request import Request, Sampling
    from funnel_export.spec.data import DataSpec
    from funnel_export.spec.funnel import FunnelSpec
    from funnel_export.spec.profile import Profile
    from funnel_export.spec.quantization import Quantization
    from funnel_export.spec.training import TrainingSpec

__version__ = "0.1.0.dev0"

_HOMES = {
    "Batch": "runtime.batch",
    "Bundle": "bundle.load",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "DataSpec": "spec.data",
    "ExportError": "errors",
    "FunnelCache": "funnel",
    "FunnelExportError": "errors",
    "FunnelExportWarning": "errors",
    "FunnelModelForCausalLM": "runtime.model",
    "FunnelSpec": "spec.funnel",
    "Generated": "commands.generate",
    "Profile": "spec.profile",
    "Quantization": "spec.quantization",
    "Request": "runtime.request",
    "Sampling": "runtime.request",
    "SpecError": "errors",
    "TargetRefusedError": "errors",
    "TargetUnavailableError": "errors",
    "TrainingSpec": "spec.training",
    "adapt": "commands.adapt",
    "apply_funnel": "funnel",
    "bench": "commands.bench",
    "check": "commands.check",
    "compile_bundle": "commands.compile",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "fit": "commands.fit",
    "generate": "commands.generate",
    "load_bundle": "bundle.load",
    "package": "commands.package",
    "quantize": "commands.quantize",
    "remove_funnel": "funnel",
    "transplant": "commands.transplant",
}
"""Where each public name lives."""

__all__ = [
    "Batch",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DataError",
    "DataSpec",
    "ExportError",
    "FunnelCache",
    "FunnelExportError",
    "FunnelExportWarning",
    "FunnelModelForCausalLM",
    "FunnelSpec",
    "Generated",
    "Profile",
    "Quantization",
    "Request",
    "Sampling",
    "SpecError",
    "TargetRefusedError",
    "TargetUnavailableError",
    "TrainingSpec",
    "__version__",
    "adapt",
    "apply_funnel",
    "bench",
    "check",
    "compile_bundle",
    "evaluate",
    "export",
    "fit",
    "generate",
    "load_bundle",
    "package",
    "quantize",
    "remove_funnel",
    "transplant",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"funnel_export.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
