"""Access to the GPU through NVIDIA's Python bindings of CUDA.

PyTorch is not used, since a machine that serves engines may not have a PyTorch with CUDA.
"""

from dataclasses import dataclass
from typing import Any

from funnel_export.errors import TargetRefusedError, TargetUnavailableError


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    compute_capability: str
    """For example 9.0."""
    driver: str
    """Newest CUDA version that the driver supports, for example 13.0."""


def find_gpu() -> Gpu:
    """The GPU that CUDA uses: the first one in CUDA_VISIBLE_DEVICES.

    Raises:
        TargetUnavailableError: if the bindings, a driver or a GPU is missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as err:
        raise TargetUnavailableError(
            "the GPU cannot be queried", got=f"not installed: {err}", hint="pip install cuda-bindings"
        ) from err
    _, driver = runtime.cudaDriverGetVersion()
    if not driver:
        raise TargetUnavailableError(
            "there is no NVIDIA driver here", hint="install the driver, or use a machine with a GPU"
        )
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        raise TargetUnavailableError(
            "there is no NVIDIA GPU here", got=_text(runtime, error), hint="check CUDA_VISIBLE_DEVICES"
        )
    try:
        found = call("cudaGetDeviceProperties", call("cudaGetDevice"))
    except TargetRefusedError as err:
        raise TargetUnavailableError("the NVIDIA GPU here does not answer", got=err.details.get("got")) from err
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    return Gpu(name, f"{found.major}.{found.minor}", f"{driver // 1000}.{driver % 1000 // 10}")


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; return its result: a tuple if there are several, None if there are none.

    Raises:
        TargetRefusedError: if it fails; the message has CUDA's error.
    """
    from cuda.bindings import runtime

    error, *results = getattr(runtime, function)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        raise TargetRefusedError(f"CUDA failed in {function}", got=_text(runtime, error))
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def _text(runtime: Any, error: Any) -> str:
    return f"{error.name}: {runtime.cudaGetErrorString(error)[1].decode()}"
