"""Packages of the extra `quality`, which are imported when they are needed."""

from importlib import import_module
from typing import Any

from funnel_export.errors import SpecError
from funnel_export.system.extras import install_command


def load_package(name: str, purpose: str, extra: str = "quality") -> Any:
    """Import a module of an optional package.

    Args:
        name: the module.
        purpose: what it is needed for, for the error.
        extra: the extra of this distribution that installs the package.

    Raises:
        SpecError: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as err:
        package = name.partition(".")[0]
        raise SpecError(
            f"the package {package} is not installed",
            got=err,
            wanted=f"{package}, for {purpose}",
            hint=install_command(extra),
        ) from err
