"""A bundle with what it must compute, and the comparison that every runtime has to pass."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASKS = ("feature-extraction", "text-generation", "text-classification", "token-classification")
KINDS = ("funnel", "dense")
SIDES = ("left", "right")
EMBEDDER = "gemma3-feature-extraction"
"""A Gemma 3 that sees both sides, with modules of sentence-transformers; the folder of this name is its checkpoint."""
HALF = f"{EMBEDDER}-half"
"""The same in float16, without a reference."""
GEMMA3 = (EMBEDDER, "gemma3-text-generation", "gemma3-text-classification")
"""Hugging Face has no Gemma 3 for token classification."""
LINKED = "text-generation-linked"
"""`text-generation-funnel` with hard-linked weights, as `export` writes them by default."""
UNNAMED = "feature-extraction-unnamed"
"""A funnel whose checkpoint has a tokenizer without a class of its own, as transformers 5 writes it."""
QUANTIZED = ("text-generation-int8", "text-generation-int4")
"""Funnels with quantized weights, which Hugging Face does not load."""
NAMES = (*(f"{model}-{kind}" for model in (*TASKS, *GEMMA3) for kind in KINDS), LINKED, UNNAMED)


def names_of(task: str) -> list[str]:
    """The bundles of a task, of every family, with a funnel and dense."""
    return [
        f"{prefix}{task}-{kind}" for prefix in ("", "gemma3-") for kind in KINDS if f"{prefix}{task}-{kind}" in NAMES
    ]


RELATIVE = 2e-5
"""Largest error in float32, over the largest output."""


@dataclass(frozen=True)
class Case:
    """A bundle and its reference, written in another environment."""

    folder: Path
    reference: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, bundles: Path, name: str) -> "Case":
        """The case of this name; the linked bundle must compute what the copied one does."""
        with np.load(bundles / f"{name.replace('linked', 'funnel')}.npz") as file:
            return cls(bundles / name, dict(file))

    @property
    def task(self) -> str:
        """What the bundle is for."""
        return str(self.reference["task"])

    @property
    def texts(self) -> list[str]:
        """The rows as text."""
        return self.reference["texts"].tolist()

    @property
    def tokens(self) -> dict[str, list[int]]:
        """Many strange texts, and what transformers 5 makes of each."""
        return json.loads(str(self.reference["tokens"]))

    def inputs(self, side: str) -> dict[str, NDArray[np.int64]]:
        """The texts' tokens, int64 [batch, columns], padded on a side."""
        return {name: self.reference[f"{name}-{side}"] for name in ("input_ids", "attention_mask")}

    def real(self, side: str, output: NDArray[Any]) -> NDArray[Any]:
        """Outputs at real tokens, row after row, from [batch, columns, width]; those of whole texts are all real."""
        return output if output.ndim == 2 else output[self.inputs(side)["attention_mask"] != 0]

    def rows(self) -> list[NDArray[Any]]:
        """What is expected of each text: [tokens, width], or [1, width] for whole texts."""
        lengths = self.inputs("left")["attention_mask"].sum(axis=1)
        expected = self.reference["expected"]
        return np.split(expected, len(lengths) if len(expected) == len(lengths) else np.cumsum(lengths)[:-1])

    def check(self, side: str, output: NDArray[Any]) -> None:
        """The output is eager PyTorch's at every real token, and within rounding what ONNX Runtime gave beside us."""
        assert output.shape == self.reference[f"onnxruntime-{side}"].shape
        assert_close(self.real(side, output), self.reference["expected"], "eager PyTorch")
        assert_close(
            self.real(side, output), self.real(side, self.reference[f"onnxruntime-{side}"]), "our ONNX Runtime"
        )


def assert_close(got: NDArray[Any], wanted: NDArray[Any], what: str) -> None:
    """The largest difference is within the limit; NaN is not."""
    assert got.shape == wanted.shape
    worst, limit = np.abs(got - wanted).max(), RELATIVE * np.abs(wanted).max()
    if not worst <= limit:
        raise AssertionError(f"differs from {what} by {worst:.2e}, limit {limit:.2e}")
