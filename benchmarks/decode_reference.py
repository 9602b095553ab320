"""Outputs of eager PyTorch that decoding is compared with. They are not timed, so they are made before a race."""

import json
from collections.abc import Iterable
from pathlib import Path

from decode_entries import Exports
from peers_groups import say

from funnel_export.latency.in_pytorch import TorchModel
from funnel_export.latency.serve import SAMPLES
from funnel_export.latency.shape import Shape

Ids = list[list[int]]


class References:
    """Samples of outputs, in a file: of each model in float32, and with the weights that a bundle stores."""

    def __init__(self, exports: Exports, file: Path) -> None:
        """The samples that the file has already are kept."""
        self._exports = exports
        self._file = file
        self._found: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}

    def sample(self, model: str, form: str, shape: Shape) -> list[float]:
        """The outputs of a model with the weights of a form; see `make`."""
        return self._found[_key(model, form, shape)]

    def make(self, models: Iterable[tuple[str, str]], batches: dict[Shape, Ids]) -> None:
        """Run models, each with the weights of a form, on the texts on which they have not run yet."""
        for model, form in models:
            missing = {shape: ids for shape, ids in batches.items() if _key(model, form, shape) not in self._found}
            if missing:
                say(f"eager PyTorch: {model} in {form}")
                runs = TorchModel(self._exports.bundle(model, form), None, "cpu", compiled=False)
            for shape, ids in missing.items():
                self._found[_key(model, form, shape)] = sample_of(runs.run(ids, shape.steps))
                self._file.write_text(json.dumps(self._found))


def sample_of(outputs: list[float]) -> list[float]:
    """Those outputs that a runner sends back."""
    return outputs[:: max(1, len(outputs) // SAMPLES)]


def _key(model: str, form: str, shape: Shape) -> str:
    return f"{model}, {form}, {shape}"
