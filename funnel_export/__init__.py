"""Gemma2 with a sequence funnel: exported, compiled and proven equal to eager PyTorch.

Importing the package loads neither torch nor a runtime; the names below load what they need when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funnel_export.bundle.load import Bundle, load_bundle
    from funnel_export.commands.bench import bench
    from funnel_export.commands.check import check
    from funnel_export.commands.compile import compile_bundle
    from funnel_export.commands.export import export
    from funnel_export.funnel import FunnelCache, apply_funnel, remove_funnel
    from funnel_export.spec.funnel import FunnelSpec

__version__ = "0.1.0.dev0"

_HOMES = {
    "Bundle": "funnel_export.bundle.load",
    "FunnelCache": "funnel_export.funnel",
    "FunnelSpec": "funnel_export.spec.funnel",
    "apply_funnel": "funnel_export.funnel",
    "bench": "funnel_export.commands.bench",
    "check": "funnel_export.commands.check",
    "compile_bundle": "funnel_export.commands.compile",
    "export": "funnel_export.commands.export",
    "load_bundle": "funnel_export.bundle.load",
    "remove_funnel": "funnel_export.funnel",
}

__all__ = [
    "Bundle",
    "FunnelCache",
    "FunnelSpec",
    "__version__",
    "apply_funnel",
    "bench",
    "check",
    "compile_bundle",
    "export",
    "load_bundle",
    "remove_funnel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
