"""What tells TensorRT from TensorRT-RTX: the module, and the options that one of the two cannot honour."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from funnel_export.errors import TargetUnavailableError


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """One of the two modules."""

    target: str
    """Name of the target, and of the extra that installs it."""
    module: str
    builds_without_gpu: bool
    refuses: Mapping[str, str]
    """Options that it cannot honour, and why."""
    needs_gpu_for: Mapping[str, str]
    """Options that it can honour only where a GPU is, and why."""

    def installed(self) -> str | None:
        """Version of the installed package, None if there is none."""
        try:
            return version(self.target)
        except PackageNotFoundError:
            return None

    def load(self) -> Any:
        """The module.

        Raises:
            TargetUnavailableError: if it is not installed, or its libraries do not load.
        """
        try:
            return import_module(self.module)
        except (ImportError, OSError) as err:
            missing = self.installed() is None
            raise TargetUnavailableError(
                f"{self.target} is not installed" if missing else f"{self.target} is installed and does not load",
                got=err,
                hint=f"pip install 'funnel-export[{self.target}]'",
            ) from err

    def load_builder(self) -> Any:
        """The module, where Polygraphy is too, which builds need.

        Raises:
            TargetUnavailableError: if one of the two is missing.
        """
        if not has_polygraphy():
            raise TargetUnavailableError(
                f"{self.target} builds with Polygraphy",
                got="not installed: polygraphy",
                hint=f"pip install 'funnel-export[{self.target}]'",
            )
        return self.load()


def has_polygraphy() -> bool:
    """Whether Polygraphy is installed, which builds need and runs do not."""
    return find_spec("polygraphy") is not None


TENSORRT = Flavour(
    target="tensorrt",
    module="tensorrt",
    builds_without_gpu=False,
    refuses={"compute_capabilities": "a TensorRT plan is for the GPU it is built on: hardware_compatibility_level"},
    needs_gpu_for={},
)

_NEEDS_DRIVER = "its builder asks the driver for weights that can be exchanged"

TENSORRT_RTX = Flavour(
    target="tensorrt-rtx",
    module="tensorrt_rtx",
    builds_without_gpu=True,
    refuses={
        "timing_cache": "it compiles kernels on the device that runs them and times none, so it keeps no timing cache",
        "hardware_compatibility_level": "its plans run on several kinds of GPU by themselves: compute_capabilities",
        "version_compatible": "it has no lean runtime, and its plans run in the version that built them only",
        "exclude_lean_runtime": "it has no lean runtime",
    },
    needs_gpu_for={"refit": _NEEDS_DRIVER, "strip_plan": _NEEDS_DRIVER},
)
