"""Runtimes that load a bundle."""

from funnel_export.targets.base import Availability, Session, Target, get_target, require, target_names

__all__ = ["Availability", "Session", "Target", "get_target", "require", "target_names"]
