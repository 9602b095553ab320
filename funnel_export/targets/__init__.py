"""Runtimes that compile and load bundles."""

from funnel_export.targets.base import (
    Availability,
    Compiled,
    CompileRequest,
    Session,
    Target,
    get_target,
    refuse_misfit,
    refuse_odd_name,
    refuse_odd_path,
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
    "refuse_odd_name",
    "refuse_odd_path",
    "require",
    "target_names",
]
