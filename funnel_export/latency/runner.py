"""The process of one runner: it runs a bundle in PyTorch or in a target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from funnel_export.bundle.engine import load_engine
from funnel_export.bundle.load import Bundle, load_bundle
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.errors import TargetUnavailableError
from funnel_export.latency.serve import TimedModel, serve
from funnel_export.spec.choices import Dtype
from funnel_export.targets.base import check_fits
from funnel_export.targets.registry import get_target
from funnel_export.targets.tensorrt.gpu import call, find_gpu


class RunnerSetup(BaseModel):
    """The bundle that a runner loads, and what runs it."""

    model_config = ConfigDict(frozen=True)

    bundle: Path
    target: str | None = None
    """Name of a target, None for PyTorch."""
    engine: str | None = None
    """Name of an engine, None for the bundle's graph."""
    compiled: bool = False
    """Whether PyTorch runs under torch.compile."""
    device: str = "cpu"
    """PyTorch's device."""
    dtype: Dtype | None = None
    """Dtype of PyTorch's model; by default the bundle's."""


class TargetModel:
    """A bundle's graph or engine in a target."""

    def __init__(self, bundle: Bundle, setup: RunnerSetup) -> None:
        assert setup.target is not None
        target = get_target(setup.target)
        engine = None if setup.engine is None else load_engine(bundle, setup.engine)
        if engine is not None:
            check_fits(target, engine)
        self._session = target.load(bundle.model, engine=engine)
        self._graph = bundle.model
        self.facts = {"device": self._session.device, "precision": self._session.precision}

    def run(self, ids: list[list[int]]) -> list[float]:
        """See `TimedModel.run`."""
        return _last(self._session.run(self._feed(ids))[self._graph.output.name])

    def prepare(self, ids: list[list[int]]) -> Callable[[], object]:
        """See `TimedModel.prepare`."""
        return self._session.prepare(self._feed(ids))

    def _feed(self, ids: list[list[int]]) -> dict[str, NDArray[Any]]:
        tokens = np.array(ids, dtype=np.int64)
        return feed(self._graph.inputs, {PortKind.TOKENS: tokens, PortKind.MASK: np.ones_like(tokens)})


class TorchModel:
    """Hugging Face's model with a bundle's weights, eager or under torch.compile."""

    def __init__(self, bundle: Bundle, setup: RunnerSetup) -> None:
        import torch

        from funnel_export.funnel import apply_funnel
        from funnel_export.verify.reference import load_model

        dtype = setup.dtype or bundle.spec.dtype
        self._device, self._torch = torch.device(setup.device), torch
        self._model = load_model(bundle, getattr(torch, dtype)).to(self._device)
        if bundle.spec.funnel is not None:
            apply_funnel(self._model, bundle.spec.funnel)
        self._forward: Callable[..., Any] = torch.compile(self._model) if setup.compiled else self._model
        self._output, self._bundle = bundle.model.output.name, bundle
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        self.facts = {"device": name, "precision": str(dtype)}

    def run(self, ids: list[list[int]]) -> list[float]:
        """See `TimedModel.run`."""
        return _last(self.prepare(ids)().float().cpu().numpy())

    def prepare(self, ids: list[list[int]]) -> Callable[[], Any]:
        """See `TimedModel.prepare`."""
        from funnel_export.verify.reference import output_options

        torch = self._torch
        tokens = torch.tensor(ids, device=self._device)
        mask = torch.ones_like(tokens)
        options = output_options(self._bundle, tokens.shape[1])

        def forward() -> Any:
            with torch.no_grad():
                out = self._forward(input_ids=tokens, attention_mask=mask, use_cache=False, **options)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return getattr(out, self._output)

        return forward


def device_bytes() -> int | None:
    """Bytes of GPU memory in use by all processes; None without a GPU."""
    try:
        find_gpu()
    except TargetUnavailableError:
        return None
    free, total = call("cudaMemGetInfo")
    return int(total) - int(free)


def _last(output: NDArray[Any]) -> list[float]:
    """The outputs of the last row's last token, from [batch, tokens, width] or [batch, width]."""
    values: list[float] = output.reshape(-1, output.shape[-1])[-1].astype(np.float64).tolist()
    return values


def load(request: dict[str, Any]) -> TimedModel:
    """Load the model that a request names, a `RunnerSetup` as JSON."""
    setup = RunnerSetup.model_validate(request)
    bundle = load_bundle(setup.bundle)
    return TorchModel(bundle, setup) if setup.target is None else TargetModel(bundle, setup)


if __name__ == "__main__":
    serve(load, device_bytes)
