"""The process of one runner: it runs a bundle in PyTorch or in a target."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.load import load_bundle
from funnel_export.errors import TargetUnavailableError
from funnel_export.latency.in_target import GraphModel, StagesModel
from funnel_export.latency.serve import TimedModel, serve
from funnel_export.spec.choices import Dtype
from funnel_export.targets.tensorrt.gpu import call, find_gpu


class RunnerSetup(BaseModel):
    """The bundle that a runner loads, and what runs it."""

    model_config = ConfigDict(frozen=True)

    bundle: Path
    target: str | None = None
    """Name of a target, None for PyTorch."""
    engines: tuple[str, ...] = ()
    """Names of engines, at most one for each graph; graphs without one are run as they are."""
    compiled: bool = False
    """Whether PyTorch runs under torch.compile."""
    device: str = "cpu"
    """PyTorch's device."""
    dtype: Dtype | None = None
    """Dtype of PyTorch's model; by default the bundle's."""


def device_bytes() -> int | None:
    """Bytes of GPU memory in use by all processes; None without a GPU."""
    try:
        find_gpu()
    except TargetUnavailableError:
        return None
    free, total = call("cudaMemGetInfo")
    return int(total) - int(free)


def load(request: dict[str, Any]) -> TimedModel:
    """Load the model that a request names, a `RunnerSetup` as JSON."""
    setup = RunnerSetup.model_validate(request)
    bundle = load_bundle(setup.bundle)
    if setup.target is not None:
        kind = StagesModel if bundle.spec.task.has_past else GraphModel
        return kind(bundle, setup.target, setup.engines)
    from funnel_export.latency.in_pytorch import TorchModel

    return TorchModel(bundle, setup.dtype, setup.device, compiled=setup.compiled)


if __name__ == "__main__":
    serve(load, device_bytes)
