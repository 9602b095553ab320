"""Decoding: milliseconds a token with a cache, dense and with funnels, beside Hugging Face.

    python benchmarks/decode.py --out benchmarks/results/decode.json

Every runner continues the same text from the same number of tokens. Their steps are interleaved in one process, in
blocks of 8 tokens, two windows of the longest stride; after a block the cache is as before. The measure is the median
over the blocks.

Two limits stand beside the times: the bytes that a token reads (weights, caches) over the bandwidth of a matrix-vector
product, and the share of bytes that a funnel needs of the dense model's.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from export import DIMENSIONS, make_checkpoint
from measure import conditions

PASTS = (512, 2048)
"""Tokens before the steps."""
REST = 0.1
"""Seconds before a block, in which the threads of the runner before stop spinning."""
BLOCK = 8
ROUNDS = 9
FUNNELS = {"dense": None, "S=2": "3:9:2", "S=4": "3:9:4"}
"""Half of the layers run on slots."""
MATRIX = (8192, 16384)
"""Of the product that measures the bandwidth: 0.5 GB, far more than any cache of a processor."""


class Exported:
    """A bundle in a target, with a text of some tokens in its cache."""

    def __init__(self, bundle: Any, target: str) -> None:
        from funnel_export.runtime.load import load_stepper

        self.stepper = load_stepper(bundle, target)

    def read(self, tokens: Any) -> None:
        """Read a prompt."""
        self.state = self.stepper.new_state(1)
        self.start = np.array([tokens.shape[1]])
        self.stepper.step(self.state, tokens)

    def steps(self, tokens: Any) -> None:
        """Read tokens one by one, and forget them."""
        for at in range(tokens.shape[1]):
            self.stepper.step(self.state, tokens[:, at : at + 1])
        self.state.crop(self.start)

    def logits(self, tokens: Any) -> Any:
        """The logits after some tokens."""
        found = self.stepper.step(self.state, tokens)[0, -1].astype(np.float32)
        self.state.crop(self.start)
        return found


class Eager:
    """Hugging Face's model in eager PyTorch with its own cache."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        kind = getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=kind, attn_implementation="eager").eval()

    def read(self, tokens: Any) -> None:
        """Read a prompt."""
        with self.torch.no_grad():
            self.cache = self.model(self.torch.from_numpy(tokens), use_cache=True, logits_to_keep=1).past_key_values
        # Its layers make new tensors in every step, so the old ones can be put back.
        self.kept = [dict(vars(layer)) for layer in self.cache.layers]

    def steps(self, tokens: Any) -> None:
        """Read tokens one by one, and forget them."""
        with self.torch.no_grad():
            for at in range(tokens.shape[1]):
                ids = self.torch.from_numpy(tokens[:, at : at + 1].copy())
                self.model(ids, past_key_values=self.cache, use_cache=True)
        self._crop()

    def logits(self, tokens: Any) -> Any:
        """The logits after some tokens."""
        with self.torch.no_grad():
            out = self.model(self.torch.from_numpy(tokens.copy()), past_key_values=self.cache, use_cache=True)
        self._crop()
        return out.logits[0, -1].float().numpy()

    def _crop(self) -> None:
        for layer, kept in zip(self.cache.layers, self.kept, strict=True):
            vars(layer).update(kept)


def bandwidth() -> float:
    """Bytes a second of a float32 matrix-vector product."""
    import torch

    matrix, vector = torch.ones(MATRIX), torch.ones(MATRIX[1])
    times = []
    for _ in range(9):
        start = time.perf_counter()
        matrix @ vector
        times.append(time.perf_counter() - start)
    return matrix.nbytes / statistics.median(times)


def bytes_of_a_token(bundle: Any, past: int) -> float:
    """Bytes that a step reads on average: weights of layers and head, and caches of full attention, in float32."""
    from funnel_export.spec.funnel import segments_of

    architecture, family = bundle.architecture, bundle.family
    entry = 2 * architecture.num_key_value_heads * architecture.head_dim
    total = architecture.vocab_size * architecture.hidden_size
    for segment in segments_of(bundle.spec.funnel, architecture.num_hidden_layers):
        for layer in segment.layers:
            weights = family.layer_cost(architecture, layer).weights
            total += (weights + past / segment.stride * entry) / segment.stride
    return 4.0 * total


def block_ms(call: Callable[[], None]) -> float:
    """Milliseconds a token."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3 / BLOCK


def measure(runners: dict[str, Any], past: int, vocab: int) -> dict[str, Any]:
    """Median milliseconds a token of each runner, and the largest difference of its logits from eager float32's."""
    generator = np.random.default_rng(0)
    prompt, tokens = (generator.integers(1, vocab, (1, length)) for length in (past, BLOCK))
    prompts = {}
    for name, runner in runners.items():
        start = time.perf_counter()
        runner.read(prompt)
        prompts[name] = time.perf_counter() - start
        runner.steps(tokens)
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            time.sleep(REST)
            times[name].append(block_ms(lambda runner=runner: runner.steps(tokens)))  # type: ignore[misc]
    wanted = runners["eager float32"].logits(tokens)
    scale = float(np.abs(wanted).max())
    return {
        name: {
            "ms": statistics.median(found),
            "range_ms": [min(found), max(found)],
            "prompt_s": prompts[name],
            "difference": float(np.abs(runners[name].logits(tokens) - wanted).max()) / scale,
        }
        for name, found in times.items()
    }


def main() -> None:
    """Measure everything, and write the result."""
    from transformers.utils import logging

    from funnel_export import export

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pasts", type=int, nargs="+", default=PASTS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"dimensions": DIMENSIONS, "funnels": FUNNELS, "block": BLOCK, "rounds": ROUNDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint")
        runners: dict[str, Any] = {
            f"eager {dtype}": Eager(folder / "checkpoint", dtype) for dtype in ("float32", "bfloat16")
        }
        bundles = {}
        for kind, funnel in FUNNELS.items():
            for dtype in ("float32", "bfloat16"):
                bundles[kind, dtype] = export(
                    folder / "checkpoint", folder / f"{kind}-{dtype}", funnel=funnel or "none", dtype=dtype,
                    task="text-generation-with-past",
                )  # fmt: skip
            runners[f"onnxruntime {kind} float32"] = Exported(bundles[kind, "float32"], "onnxruntime")
            runners[f"openvino {kind} float32"] = Exported(bundles[kind, "float32"], "openvino")
            runners[f"openvino {kind} bfloat16"] = Exported(bundles[kind, "bfloat16"], "openvino")
        vocab = bundles["dense", "float32"].architecture.vocab_size
        result["bandwidth_gb_s"] = bandwidth() / 1e9
        result["results"] = {}
        for past in arguments.pasts:
            needed = {kind: bytes_of_a_token(bundles[kind, "float32"], past) for kind in FUNNELS}
            result["results"][str(past)] = {"bytes": needed, "runners": measure(runners, past, vocab)}
            print(json.dumps(result["results"][str(past)], indent=1), flush=True)
    packages = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")
    result["conditions"] = conditions(packages)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
