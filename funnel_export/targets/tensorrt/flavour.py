"""The differences between TensorRT and TensorRT-RTX: the module, and unsupported options."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from funnel_export.errors import TargetUnavailableError
from funnel_export.system.extras import install_command


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """TensorRT or TensorRT-RTX."""

    target: str
    """Name of the target, the package and the extra that installs it."""
    module: str
    builds_without_gpu: bool
    refuses: Mapping[str, str]
    """Options that it does not support, with reasons."""
    needs_gpu_for: Mapping[str, str]
    """Options that it supports only on a machine with a GPU, with reasons."""

    def installed(self) -> str | None:
        """Version of the installed package, None if it is not installed."""
        try:
            return version(self.target)
        except PackageNotFoundError:
            return None

    def load(self) -> Any:
        """Import the module.

        Raises:
            TargetUnavailableError: if it is not installed, or its libraries do not load.
        """
        try:
            return import_module(self.module)
        except (ImportError, OSError) as err:
            missing = self.installed() is None
            raise TargetUnavailableError(
                f"{self.target} is not installed" if missing else f"{self.target} is installed but does not load",
                got=err,
                hint=install_command(self.target),
            ) from err

    def load_builder(self) -> Any:
        """Import the module for a build, which also needs Polygraphy.

        Raises:
            TargetUnavailableError: if one of the two is missing.
        """
        if not has_polygraphy():
            raise TargetUnavailableError(
                f"{self.target} needs Polygraphy for builds",
                got="not installed: polygraphy",
                hint=install_command(self.target),
            )
        return self.load()


def has_polygraphy() -> bool:
    """Whether Polygraphy is installed; builds need it, runs do not."""
    return find_spec("polygraphy") is not None


TENSORRT = Flavour(
    target="tensorrt",
    module="tensorrt",
    builds_without_gpu=False,
    refuses={
        "compute_capabilities": "a plan is for the GPU that it is built on; see option hardware_compatibility_level"
    },
    needs_gpu_for={},
)

_NEEDS_DRIVER = "its builder calls the driver for plans with replaceable weights"

TENSORRT_RTX = Flavour(
    target="tensorrt-rtx",
    module="tensorrt_rtx",
    builds_without_gpu=True,
    refuses={
        "timing_cache": "it times no kernels, since it compiles them on the device that runs them",
        "hardware_compatibility_level": "its plans run on several kinds of GPU; see option compute_capabilities",
        "version_compatible": "it has no lean runtime, and its plans run only in the version that built them",
        "exclude_lean_runtime": "it has no lean runtime",
    },
    needs_gpu_for={"refit": _NEEDS_DRIVER, "strip_plan": _NEEDS_DRIVER},
)
