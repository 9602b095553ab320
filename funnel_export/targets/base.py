"""What every target can do: say whether it works here, load a bundle, run it with named tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle import Bundle
from funnel_export.config import Dtype
from funnel_export.errors import SpecError, TargetUnavailableError


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """Whether a target works on this machine."""

    available: bool
    version: str | None = None
    """Version of the runtime, None if it is not installed."""
    detail: str = ""
    """The devices that it finds, or why it does not work."""
    hint: str | None = None
    """What to do about it."""


class Session(Protocol):
    """A loaded graph."""

    device: str
    """Where it runs, as the runtime names it."""
    precision: str
    """What it computes in, as far as the runtime tells."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on named tensors; 16-bit outputs come back as float16, or as float32 holding bfloat16's values."""
        ...


class Target(Protocol):
    """A runtime that loads bundles."""

    name: ClassVar[str]

    def availability(self) -> Availability:
        """Whether it works here, without raising."""
        ...

    def supports(self, dtype: Dtype) -> str | None:
        """None if it can run a graph of this dtype here, else the reason why not."""
        ...

    def load(self, bundle: Bundle, *, outputs: Sequence[str] = ()) -> Session:
        """Load a bundle's graph.

        Args:
            bundle: a verified bundle.
            outputs: names of inner values to give out besides the graph's outputs.

        Raises:
            TargetUnavailableError: if the target, or this dtype, does not work on this machine.
            TargetRefusedError: if it refuses the graph.
        """
        ...


_TARGETS = {
    "onnxruntime": ("funnel_export.targets.onnxruntime", "OnnxRuntimeTarget"),
    "openvino": ("funnel_export.targets.openvino", "OpenVinoTarget"),
}


def target_names() -> list[str]:
    """The names of all targets."""
    return list(_TARGETS)


def get_target(name: str) -> Target:
    """A target by name; `SpecError` for one that does not exist."""
    if name not in _TARGETS:
        raise SpecError("unknown target", got=repr(name), wanted=" | ".join(_TARGETS))
    module, kind = _TARGETS[name]
    target: Target = getattr(import_module(module), kind)()
    return target


def require(target: Target, dtype: Dtype) -> None:
    """Raise `TargetUnavailableError` unless the target runs graphs of this dtype here."""
    here = target.availability()
    if not here.available:
        raise TargetUnavailableError(f"{target.name} is not available here", got=here.detail, hint=here.hint)
    reason = target.supports(dtype)
    if reason is not None:
        raise TargetUnavailableError(
            f"{target.name} cannot run a {dtype} graph here",
            got=reason,
            hint="another --target, or export with --dtype float32",
        )


def as_float(array: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 as float32, which holds its values; everything else as it is."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
