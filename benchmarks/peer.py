"""The process of a runner whose runtime has an environment of its own: onnxruntime-genai or optimum-onnx.

`peers.py` runs it in the interpreter of that environment, where this package is not installed and its dependencies may
be missing: of the package it imports only what needs nothing but the standard library.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # at the end, so that nothing here hides what the environment has

from funnel_export.latency.serve import serve

FACTS = {"device": "cpu", "precision": "float32"}


class Genai:
    """The folder that the genai builder wrote, in onnxruntime-genai."""

    facts = FACTS

    def __init__(self, folder: str) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(folder)

    def run(self, ids: list[list[int]], steps: int) -> list[float]:
        """See `TimedModel.run`."""
        return last(self.prepare(ids, steps)())

    def prepare(self, ids: list[list[int]], steps: int) -> Callable[[], Any]:
        """A prefill. A Generator takes a prompt once, so each call makes one, with its cache; none samples."""
        import numpy as np

        assert not steps
        tokens = np.array(ids, dtype=np.int32)
        batch, length = tokens.shape

        def prefill() -> Any:
            parameters = self._genai.GeneratorParams(self._model)
            parameters.set_search_options(batch_size=batch, max_length=length + 1)
            generator = self._genai.Generator(self._model, parameters)
            generator.append_tokens(tokens)
            return generator.get_output("logits")

        return prefill


class Optimum:
    """The folder that optimum-cli wrote, in optimum-onnx's ORTModelForCausalLM without a cache."""

    facts = FACTS

    def __init__(self, folder: str) -> None:
        from optimum.onnxruntime import ORTModelForCausalLM

        self._model = ORTModelForCausalLM.from_pretrained(folder, use_cache=False)

    def run(self, ids: list[list[int]], steps: int) -> list[float]:
        """See `TimedModel.run`."""
        return last(self.prepare(ids, steps)().numpy())

    def prepare(self, ids: list[list[int]], steps: int) -> Callable[[], Any]:
        """See `TimedModel.prepare`."""
        import torch

        assert not steps
        tokens = torch.tensor(ids)
        mask = torch.ones_like(tokens)

        def forward() -> Any:
            with torch.no_grad():
                return self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits

        return forward


def last(logits: Any) -> list[float]:
    """[batch, tokens, vocabulary]: the logits of the last row's last token."""
    values: list[float] = logits.reshape(-1, logits.shape[-1])[-1].tolist()
    return values


RUNTIMES: dict[str, Callable[[str], Any]] = {"genai": Genai, "optimum": Optimum}

if __name__ == "__main__":
    serve(lambda request: RUNTIMES[request["runtime"]](request["folder"]))
