"""The process of a runner whose runtime has an environment of its own: onnxruntime-genai, optimum, llama.cpp.

`peers.py` and `decode.py` run it in the interpreter of that environment, where this package is not installed and its
dependencies may be missing: of the package it imports only what needs nothing but the standard library.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # at the end, so that nothing here hides what the environment has

from funnel_export.latency.serve import serve

FACTS = {"device": "cpu", "precision": "float32"}


MORE_TOKENS = 256
"""By which a text of genai may grow: the steps of all calls."""
LONGEST = 4096 + MORE_TOKENS
"""Tokens for which llama.cpp makes room."""


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
        """A prefill, for which each call makes a Generator with its cache, or steps after one; none samples."""
        import numpy as np

        tokens = np.array(ids, dtype=np.int32)
        length = tokens.shape[1] - steps
        if not steps:
            return lambda: self._read(tokens, length + 1).get_output("logits")
        generator = self._read(tokens[:, :length], tokens.shape[1] + MORE_TOKENS)

        def generate() -> Any:
            for at in range(length, tokens.shape[1]):
                generator.append_tokens(np.ascontiguousarray(tokens[:, at : at + 1]))
            return generator.get_output("logits")  # it cannot go back behind a sliding window: the text grows

        return generate

    def _read(self, tokens: Any, longest: int) -> Any:
        """A Generator that has read some tokens."""
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(batch_size=tokens.shape[0], max_length=longest)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(tokens)
        return generator


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


class Intel:
    """The folder that optimum-intel wrote, in OpenVINO itself. The cache is a state of the model."""

    facts = FACTS

    def __init__(self, folder: str, precision: str = "f32") -> None:
        import openvino

        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        self._openvino = openvino
        self._request = core.compile_model(Path(folder) / "openvino_model.xml", "CPU", hints).create_infer_request()
        self._inputs = {name for port in self._request.model_inputs for name in port.names}

    def run(self, ids: list[list[int]], steps: int) -> list[float]:
        """See `TimedModel.run`."""
        return last(self.prepare(ids, steps)())

    def prepare(self, ids: list[list[int]], steps: int) -> Callable[[], Any]:
        """See `TimedModel.prepare`; calls with steps put the state back."""
        import numpy as np

        tokens = np.array(ids, dtype=np.int64)
        length = tokens.shape[1] - steps

        def prefill() -> Any:
            self._request.reset_state()
            return self._read(tokens[:, :length], 0)

        if not steps:
            return prefill
        prefill()
        kept = [(state, np.array(state.state.data)) for state in self._request.query_state()]

        def generate() -> Any:
            for state, values in kept:
                state.state = self._openvino.Tensor(values)
            for at in range(length, tokens.shape[1]):
                logits = self._read(tokens[:, at : at + 1], at)
            return logits

        return generate

    def _read(self, tokens: Any, past: int) -> Any:
        """The logits of a chunk after some tokens, [batch, tokens, vocabulary]."""
        import numpy as np

        batch, length = tokens.shape
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, past + length), np.int64),
            "position_ids": np.tile(np.arange(past, past + length), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer({name: value for name, value in given.items() if name in self._inputs})
        return np.array(self._request.get_output_tensor(0).data)


class Llama:
    """The GGUF file in llama.cpp's server, without its HTTP. It picks its own tokens and gives no logits."""

    facts = FACTS

    def __init__(self, folder: str) -> None:
        import os

        import xllamacpp

        parameters = xllamacpp.CommonParams()
        (file,) = Path(folder).glob("*.gguf")
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = LONGEST, 1, False
        for threads in (parameters.cpuparams, parameters.cpuparams_batch):
            threads.n_threads = len(os.sched_getaffinity(0))
        self._server = xllamacpp.Server(parameters)

    def run(self, ids: list[list[int]], steps: int) -> list[float]:
        """Run it once; there are no outputs to compare."""
        self.prepare(ids, steps)()
        return []

    def prepare(self, ids: list[list[int]], steps: int) -> Callable[[], Any]:
        """A prompt and one token, or tokens after a prompt whose cache is kept. Its last token is read again.

        That makes `steps` tokens of which the first comes with the prompt's last token: as many forward passes.
        """
        (row,) = ids
        prompt = row[: len(row) - steps]

        def complete(count: int, *, cached: bool) -> None:
            asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": cached}
            found = self._server.handle_completions(asked)
            assert found["timings"]["predicted_n"] == count, found

        if not steps:
            return lambda: complete(1, cached=False)
        complete(1, cached=True)
        return lambda: complete(steps, cached=True)


def last(logits: Any) -> list[float]:
    """[batch, tokens, vocabulary]: the logits of the last row's last token."""
    values: list[float] = logits.reshape(-1, logits.shape[-1])[-1].tolist()
    return values


RUNTIMES: dict[str, Callable[[str], Any]] = {
    "genai": Genai,
    "optimum": Optimum,
    "intel": Intel,
    "intel_bf16": partial(Intel, precision="bf16"),
    "llama": Llama,
}

if __name__ == "__main__":
    serve(lambda request: RUNTIMES[request["runtime"]](request["folder"]))
