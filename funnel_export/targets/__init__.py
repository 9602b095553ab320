"""Runtimes that compile and load bundles."""

from funnel_export.targets.base import (
    Availability,
    Compiled,
    CompileRequest,
    Session,
    Target,
    get_target,
    refuse_misfit,
    require,
    target_names,
)

__all__ = [
    "Availability",
    "CompileRequest",
    "Compiled",
    "Session",
    "Target",
    "get_target",
    "refuse_misfit",
    "require",
    "target_names",
]
